# Finds nvcc and decides what it compiles for, before CMake enables the CUDA language.
#
# Native code (SASS) for 80 (A100), 86 (RTX 30), 87 (Jetson Orin), 89 (RTX 40), 90 (H100, H200) and 120 (RTX 50).
# Code for 86 does not serve 87: binary compatibility between desktop GPUs and Tegra is not promised by CUDA.
# PTX for 90 is what later GPUs translate at load time: it serves every architecture from 90 on, whereas PTX for 120
# would leave out 100 and 103 (B200, B300). The Hopper kernel is compiled for 90a besides, which serves 90 and no other
# GPU; there is no PTX of it. An nvcc that is too old for one of them builds the others.
if(NOT CMAKE_CUDA_COMPILER AND NOT DEFINED ENV{CUDACXX})
  find_program(VA_EXPORT_NVCC nvcc HINTS ENV CUDA_HOME ENV CUDA_PATH /usr/local/cuda PATH_SUFFIXES bin REQUIRED)
  set(CMAKE_CUDA_COMPILER "${VA_EXPORT_NVCC}")
endif()
set(nvcc "${CMAKE_CUDA_COMPILER}")
if(NOT nvcc)
  set(nvcc "$ENV{CUDACXX}")
endif()
execute_process(COMMAND "${nvcc}" --list-gpu-code OUTPUT_VARIABLE nvcc_archs COMMAND_ERROR_IS_FATAL ANY)

# Whether the Hopper kernel is in the library: where native code for 90 is wanted.
macro(decide_on_hopper)
  set(VA_EXPORT_HAS_HOPPER OFF)
  if(CMAKE_CUDA_ARCHITECTURES MATCHES "(^|;)90a?(-real)?(;|$)")
    set(VA_EXPORT_HAS_HOPPER ON)
  endif()
endmacro()

set(wanted "$ENV{VA_EXPORT_CUDA_ARCHS}")
if(VA_EXPORT_CUDA_ARCHS)
  set(wanted "${VA_EXPORT_CUDA_ARCHS}")
endif()
if(wanted)
  string(REGEX REPLACE "[, ]+" ";" wanted "${wanted}")
  set(CMAKE_CUDA_ARCHITECTURES "")
  foreach(arch IN LISTS wanted)
    if(NOT arch MATCHES "^[0-9]+[af]?(-real|-virtual)?$")
      message(FATAL_ERROR "VA_EXPORT_CUDA_ARCHS: '${arch}' is no architecture. Write for example \"80;90\".")
    endif()
    list(APPEND CMAKE_CUDA_ARCHITECTURES "${arch}")
  endforeach()
  decide_on_hopper()
  return()
endif()

set(CMAKE_CUDA_ARCHITECTURES "")
foreach(arch 80 86 87 89 90 120)
  if(nvcc_archs MATCHES "sm_${arch}[ \n]")
    list(APPEND CMAKE_CUDA_ARCHITECTURES "${arch}-real")
  else()
    message(WARNING "${nvcc} cannot compile for sm_${arch}: the library will have no native code for it")
  endif()
endforeach()
list(APPEND CMAKE_CUDA_ARCHITECTURES "90-virtual")
decide_on_hopper()
