#!/bin/sh
# Brings the npm packages that everything else here is written on, among them the Node.js that runs it. Nothing else.
# Run by `npm run sandbox` and `npm test`, also on a fresh clone, so it needs only a POSIX shell and npm. When nothing is to
# be done it says nothing.
set -eu
cd "$(dirname "$0")/../.."

stamp=node_modules/.gpulease-lock
if command -v sha256sum >/dev/null 2>&1; then
  wanted=$(sha256sum <package-lock.json)
else
  wanted=$(cksum <package-lock.json)
fi

if [ -f "$stamp" ] && [ "$(cat "$stamp")" = "$wanted" ]; then
  exit 0
fi
# Installed by hand (`npm install`) since the lock file was last written: as good as ours.
if [ -f node_modules/.package-lock.json ] && [ node_modules/.package-lock.json -nt package-lock.json ]; then
  printf '%s\n' "$wanted" >"$stamp"
  exit 0
fi

if ! command -v npm >/dev/null 2>&1; then
  echo "gpulease needs npm to install its packages: install Node.js (https://nodejs.org, any version since 20 will do; the" >&2
  echo "version that gpulease runs on comes with its packages), and run this again." >&2
  exit 1
fi
if [ -d node_modules ]; then
  echo "package-lock.json has changed: installing the npm packages again (npm ci, about half a minute)"
else
  echo "installing the npm packages into node_modules (npm ci, once per clone, about half a minute)"
fi
# Warnings about engines are about the Node.js of the machine, which only installs; ours comes with the packages.
npm ci --no-audit --no-fund --loglevel=error
printf '%s\n' "$wanted" >"$stamp"
