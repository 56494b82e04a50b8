# cmake --install: the library with its headers and CMake package, and the programs.

include(GNUInstallDirs)
include(CMakePackageConfigHelpers)

if(NOT TARGET regroup::regroup)
  return()
endif()
get_target_property(regroup_library regroup::regroup ALIASED_TARGET)
set_target_properties(${regroup_library} PROPERTIES EXPORT_NAME regroup)
install(TARGETS ${regroup_library} EXPORT RegroupTargets
  LIBRARY DESTINATION ${CMAKE_INSTALL_LIBDIR}
  INCLUDES DESTINATION ${CMAKE_INSTALL_INCLUDEDIR})
install(DIRECTORY ${PROJECT_SOURCE_DIR}/runtime/include/ DESTINATION ${CMAKE_INSTALL_INCLUDEDIR}
  FILES_MATCHING PATTERN "*.hpp")
if(TARGET regroup_ucx_module)
  install(TARGETS regroup_ucx_module LIBRARY DESTINATION ${CMAKE_INSTALL_LIBDIR})
endif()
# The simulator is a test of the tree and is missing where tests are not built.
foreach(program IN ITEMS regroup regroup-perf regroup-sim)
  if(TARGET ${program})
    install(TARGETS ${program} RUNTIME DESTINATION ${CMAKE_INSTALL_BINDIR})
  endif()
endforeach()

set(regroup_package_folder ${CMAKE_INSTALL_LIBDIR}/cmake/Regroup)
install(EXPORT RegroupTargets NAMESPACE regroup:: DESTINATION ${regroup_package_folder})
configure_package_config_file(${PROJECT_SOURCE_DIR}/cmake/RegroupConfig.cmake.in
  ${PROJECT_BINARY_DIR}/RegroupConfig.cmake INSTALL_DESTINATION ${regroup_package_folder})
# Before 1.0 a minor version may change the API.
write_basic_package_version_file(${PROJECT_BINARY_DIR}/RegroupConfigVersion.cmake
  COMPATIBILITY SameMinorVersion)
install(FILES
  ${PROJECT_BINARY_DIR}/RegroupConfig.cmake ${PROJECT_BINARY_DIR}/RegroupConfigVersion.cmake
  DESTINATION ${regroup_package_folder})
