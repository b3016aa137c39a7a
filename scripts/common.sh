# shellcheck shell=bash
# Sourced by the other scripts; leaves the project's folder current.

cd "$(dirname "${BASH_SOURCE[0]}")/.." || exit 1

die() {
  echo "${0##*/}: $*" >&2
  exit 1
}

# Prints the path of Bun: npm's link or, where its postinstall script didn't run, the program.
find_bun() {
  local bun
  for bun in node_modules/.bin/bun node_modules/@oven/bun-linux-*/bin/bun; do
    if [[ -x $bun ]] && "$bun" --version > /dev/null 2>&1; then
      echo "$PWD/$bun"
      return
    fi
  done
  return 1
}

# Lets one script at a time set up or build in this folder: exclusively NAME.
exclusively() {
  mkdir -p build
  exec {lock}> "build/.$1.lock"
  flock "$lock"
}
