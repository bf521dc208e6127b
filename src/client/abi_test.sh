#!/bin/sh
# What programs rely on in libtrims.so: its name, what it exports, what it needs,
# and that it is small.
#
#   abi_test.sh libtrims.so trims.symbols
set -eu
library=$1
expected=$2
failed=0

fail() {
  echo "FAILED: $*" >&2
  failed=1
}

soname=$(readelf -d "$library" | sed -n 's/.*(SONAME).*\[\(.*\)\]/\1/p')
[ "$soname" = libtrims.so.0 ] || fail "the soname is '$soname', expected libtrims.so.0"

# Every exported name, with the version it is bound to.
exported=$(nm -D --defined-only "$library" | awk '$2 != "A" {print $3}' | LC_ALL=C sort)
wanted=$(sed 's/$/@@TRIMS_0/' "$expected" | LC_ALL=C sort)
if [ "$exported" != "$wanted" ]; then
  fail "the exported names differ from $expected (- expected, + exported):"
  printf '%s\n' "$wanted" > "${TMPDIR:-/tmp}/trims-wanted.$$"
  printf '%s\n' "$exported" | diff -u "${TMPDIR:-/tmp}/trims-wanted.$$" - >&2 || true
  rm -f "${TMPDIR:-/tmp}/trims-wanted.$$"
  echo "a name that was released may never go; add a new one to the list" >&2
fi

for needed in $(readelf -d "$library" | sed -n 's/.*(NEEDED).*\[\(.*\)\]/\1/p'); do
  case $needed in
    libc.so.* | ld-linux*.so.*) ;;
    *) fail "it needs $needed; only the C library is allowed" ;;
  esac
done

if readelf -d "$library" | grep -qE 'TEXTREL|\((RPATH|RUNPATH)\)'; then
  fail "it has text relocations or a run path"
fi
if readelf -W -l "$library" | grep -E 'GNU_STACK' | grep -q 'RWE'; then
  fail "it wants an executable stack"
fi

bytes=$(wc -c < "$library")
[ "$bytes" -le 2097152 ] || fail "it has $bytes bytes, at most 2 MiB are allowed"

[ $failed -eq 0 ] && echo "$library: $(printf '%s\n' "$exported" | wc -l) names, $bytes bytes"
exit $failed
