#!/bin/sh
# Replays a case on the code that is here now. The exit code is one for `git bisect run`: docs/guide/foreign-kernels.md
#   git bisect run sh bisect.sh CASE.json TARGET
export PYTHONDONTWRITEBYTECODE=1 # compiled Python of another commit may look as new as its source
attn-parity replay "$1" --target "$2"
code=$?
case $code in
2 | 3) exit 125 ;; # no verdict on the kernel, as where the target does not import: the commit is skipped
*) exit $code ;;
esac
