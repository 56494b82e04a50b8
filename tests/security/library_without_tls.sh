#!/bin/sh
# library_without_tls.sh LIBRARY COMMAND: the library neither loads nor contains OpenSSL; the
# command, which must, shows that the search would find it.
set -eu
library="$1"
command="$2"

uses_tls() { ldd "$1" | grep -q -E 'libssl|libcrypto'; }
names_tls() { nm -D "$1" | grep -q -E ' SSL_| EVP_| CRYPTO_'; }
contains_tls() { nm "$1" | grep -q -E ' SSL_| EVP_|regroup6secure'; }

uses_tls "$command" && names_tls "$command" && contains_tls "$command" || {
  echo "the search does not find OpenSSL in $command, where it is" >&2
  exit 1
}
if uses_tls "$library" || names_tls "$library" || contains_tls "$library"; then
  echo "$library has OpenSSL in it:" >&2
  ldd "$library" >&2
  exit 1
fi
