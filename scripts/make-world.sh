#!/bin/bash
# make-world.sh DIR NAME
#
# Builds the bundled repository NAME (a folder of testdata/worlds) in DIR, with
# its history, from its patches. Names and dates come from the patches and
# nothing from the user's configuration, so the commit ids are the same on every
# machine; testdata/worlds/NAME/commit holds the last one, and a build that ends
# elsewhere is an error. A DIR that is already there at that commit is left as
# it is; any other content of DIR is refused.
set -euo pipefail

if [ $# -ne 2 ]; then
	echo "usage: make-world.sh DIR NAME" >&2
	exit 2
fi
dir=$1 name=$2
worlds=$(cd "$(dirname "${BASH_SOURCE[0]}")/../testdata/worlds" && pwd)
if [ ! -d "$worlds/$name/patches" ]; then
	echo "make-world: no world named $name; there are: $(cd "$worlds" && echo */ | tr -d /)" >&2
	exit 2
fi
want=$(cat "$worlds/$name/commit" 2>/dev/null || true)

# git must see neither the user's settings nor an enclosing repository.
unset $(git rev-parse --local-env-vars)
export GIT_CONFIG_GLOBAL=/dev/null GIT_CONFIG_SYSTEM=/dev/null GIT_CONFIG_NOSYSTEM=1
export GIT_COMMITTER_NAME="World Builder" GIT_COMMITTER_EMAIL=worlds@example.org
export LC_ALL=C TZ=UTC

if [ -d "$dir/.git" ] && [ -n "$want" ] &&
	[ "$(git -C "$dir" rev-parse HEAD 2>/dev/null)" = "$want" ] &&
	[ -z "$(git -C "$dir" status --porcelain)" ]; then
	exit 0
fi
if [ -d "$dir" ] && [ -n "$(ls -A "$dir")" ]; then
	echo "make-world: $dir is not empty and not $name at ${want:0:12}; remove it first" >&2
	exit 1
fi

# Made aside, so that an interrupted build is never taken for a whole one.
made=$(mkdir -p "$(dirname "$dir")" && mktemp -d "$(dirname "$dir")/.making-XXXXXX")
trap 'rm -rf "$made"' EXIT
chmod 755 "$made"
git init -q -b main "$made"
git -C "$made" -c core.autocrlf=false -c gc.auto=0 am -q --committer-date-is-author-date --keep-cr \
	"$worlds/$name"/patches/*.patch
got=$(git -C "$made" rev-parse HEAD)
if [ -n "$want" ] && [ "$got" != "$want" ]; then
	echo "make-world: $name ended at $got, not at $want: its patches or git changed" >&2
	exit 1
fi
[ ! -d "$dir" ] || rmdir "$dir"
mv "$made" "$dir"
