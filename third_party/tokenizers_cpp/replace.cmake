# Puts our World tokenizer into a build of tokenizers-cpp, in place of the built-in one. CMake
# includes this file at tokenizers-cpp's project() command, wherever that stands in a build, if the
# build is configured with
#
#   -DCMAKE_PROJECT_tokenizers_cpp_INCLUDE=<this file>

set(TOKENIZERS_CPP_ROOT ${CMAKE_CURRENT_SOURCE_DIR})
add_subdirectory(${CMAKE_CURRENT_LIST_DIR}/../.. mlc_rwkv_world EXCLUDE_FROM_ALL)

# The target appears later in the including file. The archive takes the objects themselves, so that
# whoever links or installs it needs no other library.
function(_rwkv_world_replace)
  get_target_property(sources tokenizers_cpp SOURCES)
  set(built_in src/rwkv_world_tokenizer.cc)
  if(NOT built_in IN_LIST sources)
    message(FATAL_ERROR "tokenizers_cpp is built without ${built_in}; expected a tokenizers-cpp "
                        "with a World tokenizer to replace")
  endif()
  list(REMOVE_ITEM sources ${built_in})
  set_property(TARGET tokenizers_cpp PROPERTY SOURCES ${sources}
    $<TARGET_OBJECTS:rwkv_world_tokenizers_cpp> $<TARGET_OBJECTS:rwkv_world_tokenizer>)
endfunction()
cmake_language(DEFER CALL _rwkv_world_replace)
