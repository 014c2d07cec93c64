#!/usr/bin/env bash
# Installs the agent on this device, or brings an installed one up to date. Run as root:
#
#   scripts/install-agent.sh onnx|tflite|tflite-legacy[,vision][,audio] [CONFIG]
#
# CONFIG is the agent.toml that the controller writes for this device. Without one, a new
# installation gets systemd/agent.toml to fill in, and an old one keeps what it has.
set -euo pipefail

PREFIX=/opt/farflung
ETC=/etc/farflung
checkout=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)

fail() {
  printf 'error: %s\n' "$*" >&2
  exit "${code:-1}"
}

usage() {
  code=2 fail "expected onnx, tflite or tflite-legacy, perhaps with ,vision and ,audio," \
    "then optionally an agent.toml; got '$*'"
}

extra=${1:-}
[[ "$extra" =~ ^(onnx|tflite|tflite-legacy)(,vision)?(,audio)?$ ]] || usage "$*"
[ $# -le 2 ] || usage "$*"
config=${2:-}
[ -z "$config" ] || [ -r "$config" ] || fail "expected a file that can be read, got $config"
[ "$(id -u)" = 0 ] || fail "expected root; run: sudo $0 $*"
[ "$(uname -s)" = Linux ] || fail "expected Linux, got $(uname -s)"
python3 -c 'import sys, ensurepip, venv; raise SystemExit(sys.version_info < (3, 11))' 2>/dev/null ||
  fail "expected Python 3.11 or later with venv; run: apt-get install python3-venv"

if ! getent passwd farflung >/dev/null; then
  useradd --system --user-group --home-dir /var/lib/farflung --no-create-home \
    --shell /usr/sbin/nologin farflung
fi

printf 'installing farflung[%s] into %s\n' "$extra" "$PREFIX"
[ -x "$PREFIX/bin/python" ] || python3 -m venv "$PREFIX"
# A device runs the code, and may not change it.
umask 022
# First the code, by force: another checkout may well call itself the same version.
"$PREFIX/bin/python" -m pip install --quiet --disable-pip-version-check --no-input \
  --upgrade --force-reinstall --no-deps "$checkout"
"$PREFIX/bin/python" -m pip install --quiet --disable-pip-version-check --no-input \
  "${checkout}[$extra]"

# In the form in which the unit runs it. The agent may not write there, and to compile at every start
# would take seconds and megabytes. What does not compile is never imported.
"$PREFIX/bin/python" -OO -m compileall -q -j 0 "$PREFIX/lib" >/dev/null 2>&1 || true

install -d -m 755 "$ETC"
if [ -n "$config" ]; then
  install -m 640 -g farflung "$config" "$ETC/agent.toml"
elif [ ! -e "$ETC/agent.toml" ]; then
  install -m 640 -g farflung "$checkout/systemd/agent.toml" "$ETC/agent.toml"
fi
# The unit hands this file to the agent, so it must be there; empty where the broker wants none.
[ -e "$ETC/broker-password" ] || install -m 600 /dev/null "$ETC/broker-password"

install -d -m 755 /etc/systemd/system
install -m 644 "$checkout/systemd/farflung-agent.service" \
  "$checkout/systemd/farflung-agent.socket" /etc/systemd/system/
[ ! -d /run/systemd/system ] || systemctl daemon-reload

cat <<END
installed $("$PREFIX/bin/python" -c 'import importlib.metadata as m; print("farflung", m.version("farflung"))')
next: look through $ETC/agent.toml, then:
  systemctl enable farflung-agent && systemctl restart farflung-agent
END
