# shellcheck shell=bash
# Sourced by scripts/demo and scripts/test, from the root of the checkout: what both need
# before any Python of ours can run. Nothing here is done twice when it was done before.

say() { printf '%s\n' "$*"; }

step() { printf '\n== %s (%d s)\n' "$*" "$SECONDS"; }

fail() {
  printf 'error: %s\n' "$*" >&2
  exit 1
}

# quietly WHAT COMMAND...: the command's output goes to a log, whose end is shown if it fails.
quietly() {
  local what=$1 log
  shift
  log=$(mktemp "${TMPDIR:-/tmp}/farflung.XXXXXX.log")
  if ! "$@" >"$log" 2>&1 </dev/null; then
    tail -n 25 "$log" >&2
    fail "$what failed; the whole log is in $log"
  fi
  rm -f "$log"
}

as_root() {
  if [ "$(id -u)" = 0 ]; then
    "$@"
  else
    # Only a person at a terminal can be asked for a password.
    # shellcheck disable=SC2046 # no flag at all rather than an empty one
    sudo $([ -t 0 ] || printf %s -n) "$@"
  fi
}

# need_debian PACKAGE...: installs Debian packages without starting their services.
need_debian() {
  command -v apt-get >/dev/null || fail "expected apt-get to install $*; install it by hand"
  as_root true 2>/dev/null ||
    fail "expected root or sudo to install $*; run: sudo apt-get install $*"
  say "installing from Debian: $*"
  # An old package list may do; where it does not, the installation below says so.
  as_root apt-get update -qq >/dev/null 2>&1 </dev/null || say "apt-get update failed; going on"
  # A masked unit cannot start, whatever the package's own script asks for.
  local -a units=()
  local package
  if [ -d /run/systemd/system ]; then
    for package in "$@"; do
      case $package in
        mosquitto | prometheus | prometheus-alertmanager) units+=("$package.service") ;;
      esac
    done
  fi
  [ ${#units[@]} = 0 ] || quietly "masking ${units[*]}" as_root systemctl mask --runtime "${units[@]}"
  quietly "installing $*" as_root env DEBIAN_FRONTEND=noninteractive \
    apt-get install -y -qq --no-install-recommends "$@"
  if [ ${#units[@]} != 0 ]; then
    quietly "disabling ${units[*]}" as_root systemctl disable "${units[@]}"
    quietly "unmasking ${units[*]}" as_root systemctl unmask --runtime "${units[@]}"
  fi
}

# choose_python: sets `python` to a Python 3.11, or else to any that the runtimes are built for.
choose_python() {
  local candidate
  for candidate in python3.11 python3 python3.12 python3.13; do
    if "$candidate" -c 'import sys; raise SystemExit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' \
      2>/dev/null; then
      python=$candidate
      return
    fi
  done
  fail "expected Python 3.11, 3.12 or 3.13, got $(python3 --version 2>&1 || true); run: apt-get install python3"
}

# make_env EXTRA [WIDER]: .venv with farflung[EXTRA]; one with farflung[WIDER] does as well.
make_env() {
  local extra=$1 have constraints=(-c constraints.txt)
  "$python" -c 'import ensurepip, venv' 2>/dev/null || need_debian python3-venv
  # The pins were resolved on 3.11, where the oldest runtime still has a wheel.
  "$python" -c 'import sys; raise SystemExit(sys.version_info[:2] != (3, 11))' || constraints=()

  local want
  want=$({
    "$python" -VV
    pwd
    cat pyproject.toml constraints.txt
  } | sha256sum)
  mkdir -p .cache
  (
    flock 9
    for have in "$@"; do
      [ "$(cat ".venv/.farflung-$have" 2>/dev/null)" != "$want" ] || exit 0
    done
    say "installing farflung[$extra] into .venv; the first time this takes a minute or two"
    rm -f .venv/.farflung-*
    # Laid anew unless the very same Python made it here: it holds absolute paths.
    if [ "$(cat .venv/.python 2>/dev/null)" != "$("$python" -VV; pwd)" ]; then
      quietly "making .venv" "$python" -m venv --clear .venv
      { "$python" -VV; pwd; } >.venv/.python
    fi
    quietly "installing farflung[$extra]" .venv/bin/python -m pip install \
      --disable-pip-version-check --no-input "${constraints[@]}" -e ".[$extra]"
    printf '%s\n' "$want" >".venv/.farflung-$extra"
  ) 9>.cache/environment.lock
}

# make_oracles: .cache/oracles, a Python with other people's statistics (tests/oracles), apart from
# .venv, since neither needs what the other does. Nothing is compiled but what is imported.
make_oracles() {
  local want oracles=.cache/oracles
  want=$({
    "$python" -VV
    pwd
    cat tests/oracles/pins.txt
  } | sha256sum)
  (
    flock 9
    [ "$(cat $oracles/.made 2>/dev/null)" != "$want" ] || exit 0
    say "installing the oracles into $oracles"
    quietly "making $oracles" "$python" -m venv --clear --without-pip $oracles
    quietly "installing the oracles" .venv/bin/python -m pip --python $oracles/bin/python install \
      --disable-pip-version-check --no-input --no-compile --no-deps -r tests/oracles/pins.txt
    printf '%s\n' "$want" >$oracles/.made
  ) 9>.cache/oracles.lock
}
