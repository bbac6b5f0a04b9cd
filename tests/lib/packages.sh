# SPDX-License-Identifier: Apache-2.0
# packages.sh: sourced by client/demo/run and tests/run. Installs what is missing on Debian 12 and Ubuntu 24.04
# when it may, and says what is missing when it may not.

KVG_BUILD_PACKAGES="gcc libc6-dev cmake ninja-build pkg-config libprotobuf-c-dev protobuf-c-compiler
	libssl-dev libjson-c-dev libsystemd-dev libisal-dev libopenblas-dev libnuma-dev libinih-dev
	liburing-dev"
KVG_TEST_PACKAGES="g++ clang-14 clang-format-14 libclang-rt-14-dev llvm-14 libcmocka-dev libhiredis-dev
	redis-server python3 python3-venv mandoc strace git systemd util-linux dpkg-dev"

# need_packages NAME...: all of them installed when it returns, or the script ends.
need_packages()
{
	local missing="" p
	for p in "$@"; do
		[ "$(dpkg-query -W -f='${Status}' "$p" 2>/dev/null)" = "install ok installed" ] ||
			missing="$missing $p"
	done
	[ -n "$missing" ] || return 0
	if [ "$(id -u)" = 0 ]; then
		echo "installing:$missing"
		apt-get update -qq &&
			DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends \
				$missing >/dev/null || {
			echo "$0: could not install:$missing" >&2
			exit 1
		}
	else
		echo "$0: these packages are missing; install them, or run this as root:" >&2
		echo "  apt-get install --no-install-recommends$missing" >&2
		exit 1
	fi
}
