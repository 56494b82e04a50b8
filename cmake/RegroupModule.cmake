# regroup_module(NAME SOURCES ... [TESTS ...] [LIBRARIES ...]): one module = one static library
# regroup_NAME. Its edges come from cmake/edges.txt and are never named in its own CMakeLists.txt.

set(CMAKE_CXX_STANDARD 20)
set(CMAKE_CXX_STANDARD_REQUIRED ON)
set(CMAKE_CXX_EXTENSIONS OFF)
set(CMAKE_POSITION_INDEPENDENT_CODE ON)
set(CMAKE_CXX_VISIBILITY_PRESET hidden)
set(CMAKE_VISIBILITY_INLINES_HIDDEN ON)
set(CMAKE_RUNTIME_OUTPUT_DIRECTORY ${PROJECT_BINARY_DIR}/bin)
set(CMAKE_EXPORT_COMPILE_COMMANDS ON)
if(PROJECT_IS_TOP_LEVEL AND NOT CMAKE_BUILD_TYPE)
  set(CMAKE_BUILD_TYPE RelWithDebInfo)
endif()

find_package(Threads REQUIRED)
find_package(fmt REQUIRED)

# Private to our own targets: a consumer never inherits them.
add_library(regroup_warnings INTERFACE)
target_compile_options(regroup_warnings INTERFACE
  -Wall -Wextra -Wpedantic -Werror -Wshadow -Wconversion -Wno-sign-conversion -Wnon-virtual-dtor
  -Wold-style-cast -Wcast-align -Woverloaded-virtual -Wnull-dereference
  -Wimplicit-fallthrough -Werror=switch)
# The static analysis behind these two reports false positives in libstdc++ 12 at -O2 and above.
target_compile_options(regroup_warnings INTERFACE -Wno-null-dereference -Wno-restrict)
# Members left out of a designated initialiser take their defaults: options structs are for that.
target_compile_options(regroup_warnings INTERFACE -Wno-missing-field-initializers)
# Only the compiler that the other presets use decides what is an error.
if(CMAKE_CXX_COMPILER_ID MATCHES "Clang")
  target_compile_options(regroup_warnings INTERFACE -Wno-error -Wno-unknown-warning-option)
endif()

add_library(regroup_options INTERFACE)
target_compile_features(regroup_options INTERFACE cxx_std_20)
# One rounding for each written operation on every machine: results are compared bit by bit.
target_compile_options(regroup_options INTERFACE -ffp-contract=off -fno-omit-frame-pointer)
target_include_directories(regroup_options INTERFACE
  $<BUILD_INTERFACE:${PROJECT_SOURCE_DIR}/runtime/include>
  $<BUILD_INTERFACE:${PROJECT_SOURCE_DIR}/runtime>
  $<BUILD_INTERFACE:${PROJECT_SOURCE_DIR}>)
# Optimizing a test further costs a quarter of its compile time, and shortens nothing: tests wait.
target_compile_options(regroup_options INTERFACE
  $<$<AND:$<BOOL:$<TARGET_PROPERTY:REGROUP_TEST>>,$<CONFIG:RelWithDebInfo>>:-O1>)
if(REGROUP_SANITIZE)
  # Instrumented code takes twice as long to compile; half of that goes with what a report does not
  # need, and with optimizing code that does little but wait for other processes (REGROUP_COLD).
  target_compile_options(regroup_options INTERFACE
    $<IF:$<BOOL:$<TARGET_PROPERTY:REGROUP_COLD>>,-O0,-O1> -g1
    -fsanitize=${REGROUP_SANITIZE} -fno-sanitize-recover=all)
  target_link_options(regroup_options INTERFACE -fsanitize=${REGROUP_SANITIZE})
  if(REGROUP_SANITIZE MATCHES "thread")
    # GCC cannot instrument stand-alone fences; the places that use one say what orders them.
    target_compile_options(regroup_options INTERFACE -Wno-tsan)
  endif()
endif()
# libFuzzer sees only what is instrumented: every library.
if(REGROUP_FUZZ)
  if(NOT CMAKE_CXX_COMPILER_ID MATCHES "Clang")
    message(FATAL_ERROR "REGROUP_FUZZ needs clang: cmake --preset fuzz")
  endif()
  target_compile_options(regroup_options INTERFACE -fsanitize=fuzzer-no-link)
  target_link_options(regroup_options INTERFACE -fsanitize=fuzzer-no-link)
endif()

if(REGROUP_BUILD_TESTS)
  enable_testing()
  find_package(GTest REQUIRED)
  include(GoogleTest)
endif()

file(STRINGS ${PROJECT_SOURCE_DIR}/cmake/edges.txt regroup_edge_lines REGEX "^[a-z]+:")
foreach(line IN LISTS regroup_edge_lines)
  string(REGEX MATCH "^([a-z]+): *(.*)$" _ "${line}")
  string(REPLACE " " ";" regroup_edges_${CMAKE_MATCH_1} "${CMAKE_MATCH_2}")
  set(regroup_edges_known_${CMAKE_MATCH_1} TRUE)
endforeach()

function(regroup_add_folders)
  foreach(folder IN LISTS ARGN)
    if(EXISTS ${PROJECT_SOURCE_DIR}/${folder}/CMakeLists.txt)
      add_subdirectory(${PROJECT_SOURCE_DIR}/${folder} ${PROJECT_BINARY_DIR}/${folder})
    endif()
  endforeach()
endfunction()

# The compiler sees some files of a target as one and reads the headers that they share once: that
# saves a third of a build. Not in Debug, where a change should compile one file, and not for
# clang-tidy, which looks at files one by one. Each file still has to compile alone.
option(REGROUP_COMPILE_TOGETHER "Compile files of one target together" ON)
mark_as_advanced(REGROUP_COMPILE_TOGETHER)
if(REGROUP_COMPILE_TOGETHER AND NOT CMAKE_BUILD_TYPE STREQUAL "Debug")
  set(CMAKE_UNITY_BUILD ON)
  set(CMAKE_UNITY_BUILD_BATCH_SIZE 6)
endif()
# regroup_compile_apart(SOURCES...): what has to be a file of its own, such as one whose hidden
# class has members of types that only this file knows (GCC warns of them in an included file), or
# one that shares names with another of its target.
function(regroup_compile_apart)
  set_source_files_properties(${ARGN} PROPERTIES SKIP_UNITY_BUILD_INCLUSION ON)
endfunction()

# Adds a GoogleTest program TARGET; each of its tests becomes a ctest of its own.
function(regroup_test target)
  cmake_parse_arguments(arg "" "TIMEOUT" "SOURCES;LIBRARIES;LABELS" ${ARGN})
  if(NOT arg_TIMEOUT)
    set(arg_TIMEOUT 120)
  endif()
  add_executable(${target} ${arg_SOURCES})
  set_target_properties(${target} PROPERTIES
    RUNTIME_OUTPUT_DIRECTORY ${PROJECT_BINARY_DIR}/test REGROUP_TEST TRUE REGROUP_COLD TRUE)
  target_link_libraries(${target} PRIVATE
    ${arg_LIBRARIES} regroup_warnings regroup_options GTest::gmock GTest::gtest_main)
  gtest_discover_tests(${target} DISCOVERY_MODE PRE_TEST TEST_PREFIX "${target}." PROPERTIES
    TIMEOUT ${arg_TIMEOUT} LABELS "${arg_LABELS}")
endfunction()

function(regroup_module name)
  cmake_parse_arguments(arg "" "" "SOURCES;TESTS;LIBRARIES" ${ARGN})
  if(NOT regroup_edges_known_${name})
    message(FATAL_ERROR "module ${name} is not in cmake/edges.txt: say there what it may use")
  endif()
  add_library(regroup_${name} STATIC ${arg_SOURCES})
  list(TRANSFORM regroup_edges_${name} PREPEND regroup_ OUTPUT_VARIABLE edges)
  target_link_libraries(regroup_${name}
    PUBLIC regroup_options ${edges} ${arg_LIBRARIES} fmt::fmt Threads::Threads
    PRIVATE regroup_warnings)
  if(REGROUP_BUILD_TESTS AND arg_TESTS)
    regroup_test(regroup_${name}_test SOURCES ${arg_TESTS} LIBRARIES regroup_${name} LABELS unit)
  endif()
endfunction()
