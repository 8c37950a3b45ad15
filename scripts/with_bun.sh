#!/bin/sh
# Runs a script of the project with its pinned Bun: `sh scripts/with_bun.sh scripts/test.ts ARGS`.
# Installs the npm packages first where the lock file has changed since the last time; node and npm are all that must be there.
set -eu
cd "$(dirname "$0")/.."

stamp=node_modules/.manx-installed
if [ ! -f "$stamp" ] || ! cmp -s package-lock.json "$stamp"; then
  echo "installing npm packages …" >&2
  npm ci --no-audit --no-fund --loglevel=error >&2
  cp package-lock.json "$stamp"
fi

# Where npm was told to run no install scripts, node_modules/.bin/bun is a stand-in: the platform's package holds the program.
bun=node_modules/.bin/bun
if ! "$bun" --version >/dev/null 2>&1; then
  case "$(uname -m)" in
    x86_64) bun=node_modules/@oven/bun-linux-x64/bin/bun ;;
    aarch64) bun=node_modules/@oven/bun-linux-aarch64/bin/bun ;;
  esac
fi
# The environment could otherwise change what Bun is and does.
unset BUN_OPTIONS BUN_BE_BUN
exec "$bun" --no-install "$@"
