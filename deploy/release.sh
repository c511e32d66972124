#!/usr/bin/env bash
# Builds docker-credential-atcr for every system, with checksums and a Homebrew formula:
#
#   deploy/release.sh VERSION FOLDER [URL]
#
# FOLDER is what ATCR_HELPER_DOWNLOADS names: install.sh and install.ps1 of an AppView fetch from it. URL is where the
# folder is reached, for the formula. The same source and Go version give the same bytes.
set -euo pipefail
version=${1:?usage: deploy/release.sh VERSION FOLDER [URL]}
out=${2:?usage: deploy/release.sh VERSION FOLDER [URL]}
url=${3:-}
mkdir -p "$out"
out=$(cd "$out" && pwd)
cd "$(dirname "$0")/.."

name=docker-credential-atcr
for os in linux darwin windows; do
  for arch in amd64 arm64; do
    file=${name}_${os}_${arch}
    [ "$os" != windows ] || file=$file.exe
    CGO_ENABLED=0 GOOS=$os GOARCH=$arch go build -trimpath -buildvcs=false -ldflags "-s -w -X main.version=$version" -o "$out/$file" "./cmd/$name"
    echo "built $file"
  done
done
(cd "$out" && sha256sum "${name}"_{linux,darwin}_{amd64,arm64} "${name}"_windows_{amd64,arm64}.exe > SHA256SUMS)

if [ -n "$url" ]; then
  formula=$(<deploy/homebrew/$name.rb)
  formula=${formula//@VERSION@/${version#v}}
  formula=${formula//@URL@/$url}
  while read -r sum file; do
    formula=${formula//@SUM_${file#"${name}"_}@/$sum}
  done < "$out/SHA256SUMS"
  printf '%s\n' "$formula" > "$out/$name.rb"
  echo "wrote $name.rb"
fi
