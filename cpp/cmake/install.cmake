# find_package(rwkv_world) gives other programs the targets rwkv_world::tokenizer and ::sampler.
include(CMakePackageConfigHelpers)

set(package_dir ${CMAKE_INSTALL_LIBDIR}/cmake/rwkv_world)
install(TARGETS rwkv_world_tokenizer rwkv_world_sampler EXPORT rwkv_world
  ARCHIVE DESTINATION ${CMAKE_INSTALL_LIBDIR})
install(DIRECTORY include/rwkv_world DESTINATION ${CMAKE_INSTALL_INCLUDEDIR})
install(EXPORT rwkv_world
  FILE rwkv_world-config.cmake
  NAMESPACE rwkv_world::
  DESTINATION ${package_dir})
write_basic_package_version_file(
  ${CMAKE_CURRENT_BINARY_DIR}/rwkv_world-config-version.cmake
  COMPATIBILITY SameMinorVersion)
install(FILES ${CMAKE_CURRENT_BINARY_DIR}/rwkv_world-config-version.cmake
  DESTINATION ${package_dir})
