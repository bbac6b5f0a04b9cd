#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# client_install.sh BUILD SOURCE CC: installs the client into an empty folder, then builds the example as a stranger would,
# by pkg-config and by CMake, in C and in C++, and runs it without a daemon: it must link, start, and say what is missing.
set -eu
build=$1 source=$2 cc=$3
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
cmake --install "$build/client" --prefix "$dir/first" >/dev/null
cmake --install "$build/daemon" --prefix "$dir/first" >/dev/null
mv "$dir/first" "$dir/inst"

starts() # starts PROGRAM TEXT: from the folder it was installed to, with no help from the environment
{
	env -i "$dir/inst/$1" --version >"$dir/out" 2>&1 && grep -q "$2" "$dir/out" || {
		echo "the installed $1 --version:"; cat "$dir/out"; exit 1
	}
}
starts bin/kvgatectl libkvgate
starts sbin/kvgated kvgated
env -i "$dir/inst/bin/kvgate-worker" --help >"$dir/out" 2>&1 || { cat "$dir/out"; exit 1; }
pc=$(dirname "$(find "$dir/inst" -name kvgate.pc)")
flags=$(PKG_CONFIG_PATH=$pc pkg-config --cflags --libs kvgate)
case $flags in *"$dir"*) ;; *) echo "kvgate.pc does not follow its folder: $flags"; exit 1 ;; esac

refuses() # refuses PROGRAM
{
	! KVGATE_SOCKET=$dir/none "$@" 2>"$dir/err" || { echo "$1 succeeds without a daemon"; exit 1; }
	grep -q "is kvgated running" "$dir/err" || { cat "$dir/err"; exit 1; }
}

$cc "$source/client/demo/example.c" -o "$dir/by-pkg-config" $flags -Wl,-rpath,"$(dirname "$pc")"
refuses "$dir/by-pkg-config"

# the installed header in C++: what -Wextra says of initializers differs by compiler and standard
compilers=0
for cxx in g++ clang++ clang++-14; do
	command -v $cxx >/dev/null || continue
	compilers=$((compilers + 1))
	for std in 11 14 17 20 2b; do
		$cxx -x c++ -std=c++$std -pedantic -Wall -Wextra -Werror "$source/tests/unit/use_header.c" -o "$dir/c++$std" $flags \
			-Wl,-rpath,"$(dirname "$pc")"
		! KVGATE_SOCKET=$dir/none "$dir/c++$std" || { echo "$cxx -std=c++$std: no error without a daemon"; exit 1; }
	done
done
[ $compilers -gt 0 ] || { echo "no C++ compiler here: install g++ or clang-14"; exit 1; }

mkdir "$dir/project"
cp "$source/client/demo/example.c" "$dir/project"
cat >"$dir/project/CMakeLists.txt" <<END
cmake_minimum_required(VERSION 3.22)
project(example C)
find_package(kvgate 0.1 REQUIRED)
add_executable(example example.c)
target_link_libraries(example PRIVATE kvgate::kvgate)
END
CC=$cc cmake -G Ninja -S "$dir/project" -B "$dir/project/build" -DCMAKE_PREFIX_PATH="$dir/inst" >/dev/null
cmake --build "$dir/project/build" >/dev/null
refuses "$dir/project/build/example"
for page in man3/kvgate.3 man1/kvgatectl.1 man8/kvgated.8 man5/kvgated.conf.5; do
	mandoc -Tlint -Wwarning "$dir/inst/share/man/$page" || { echo "$page: missing, or see above"; exit 1; }
done
