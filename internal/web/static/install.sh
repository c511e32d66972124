#!/bin/sh
# Installs docker-credential-atcr for the current user: a program for this system, checked against its checksum.
# INSTALL_DIR chooses the folder; else ~/.local/bin.
set -eu

url='{{{.URL}}}'
registry='{{{.Service}}}'
dir=${INSTALL_DIR:-$HOME/.local/bin}

fail() { echo "install: $*" >&2; exit 1; }

case $(uname -s) in
  Linux) os=linux ;;
  Darwin) os=darwin ;;
  *) fail "there is no release for $(uname -s); on Windows use install.ps1" ;;
esac
case $(uname -m) in
  x86_64 | amd64) arch=amd64 ;;
  aarch64 | arm64) arch=arm64 ;;
  *) fail "there is no release for $(uname -m)" ;;
esac
file=docker-credential-atcr_${os}_${arch}

if command -v curl >/dev/null; then
  fetch() { curl -fsSL -o "$2" "$1"; }
elif command -v wget >/dev/null; then
  fetch() { wget -qO "$2" "$1"; }
else
  fail "curl or wget is needed"
fi
if command -v sha256sum >/dev/null; then
  sum() { sha256sum "$1"; }
elif command -v shasum >/dev/null; then
  sum() { shasum -a 256 "$1"; }
else
  fail "sha256sum or shasum is needed to check what was downloaded"
fi

tmp=$(mktemp -d)
trap 'rm -rf "$tmp"' EXIT INT TERM
fetch "$url/SHA256SUMS" "$tmp/SHA256SUMS" || fail "cannot download $url/SHA256SUMS"
want=$(awk -v file="$file" '$2 == file || $2 == "*" file { print $1 }' "$tmp/SHA256SUMS")
[ -n "$want" ] || fail "there is no release for $os on $arch"
fetch "$url/$file" "$tmp/$file" || fail "cannot download $url/$file"
got=$(sum "$tmp/$file" | awk '{ print $1 }')
[ "$got" = "$want" ] || fail "$file has the checksum $got, not $want: nothing was installed"

mkdir -p "$dir"
chmod 755 "$tmp/$file"
mv "$tmp/$file" "$dir/docker-credential-atcr"
echo "Installed $dir/docker-credential-atcr"
case :$PATH: in
  *:"$dir":*) ;;
  *) echo "Put $dir into your PATH: docker looks for it there." ;;
esac
echo "Next: docker-credential-atcr login $registry"
