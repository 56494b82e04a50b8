#include "spi/agreement.hpp"
