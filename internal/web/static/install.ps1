# Installs docker-credential-atcr for the current user: a program for this system, checked against its checksum.
# INSTALL_DIR chooses the folder; else %LOCALAPPDATA%\Programs\atcr.
$ErrorActionPreference = 'Stop'
$url = '{{{.URL}}}'
$registry = '{{{.Service}}}'

$dir = if ($env:INSTALL_DIR) { $env:INSTALL_DIR } else { Join-Path $env:LOCALAPPDATA 'Programs\atcr' }
$arch = switch ($env:PROCESSOR_ARCHITECTURE) {
  'AMD64' { 'amd64' }
  'ARM64' { 'arm64' }
  default { throw "install: there is no release for $env:PROCESSOR_ARCHITECTURE" }
}
$file = "docker-credential-atcr_windows_$arch.exe"
$tmp = Join-Path ([IO.Path]::GetTempPath()) ([IO.Path]::GetRandomFileName())
New-Item -ItemType Directory -Path $tmp | Out-Null
try {
  Invoke-WebRequest -UseBasicParsing "$url/SHA256SUMS" -OutFile "$tmp\SHA256SUMS"
  $want = Get-Content "$tmp\SHA256SUMS" | ForEach-Object { $sum, $name = $_ -split '\s+\*?', 2; if ($name -eq $file) { $sum } }
  if (-not $want) { throw "install: there is no release for Windows on $arch" }
  Invoke-WebRequest -UseBasicParsing "$url/$file" -OutFile "$tmp\$file"
  $got = (Get-FileHash -Algorithm SHA256 "$tmp\$file").Hash.ToLowerInvariant()
  if ($got -ne $want) { throw "install: $file has the checksum $got, not ${want}: nothing was installed" }
  New-Item -ItemType Directory -Force -Path $dir | Out-Null
  Move-Item -Force "$tmp\$file" (Join-Path $dir 'docker-credential-atcr.exe')
} finally {
  Remove-Item -Recurse -Force $tmp
}
Write-Host "Installed $dir\docker-credential-atcr.exe"
if (($env:PATH -split ';') -notcontains $dir) { Write-Host "Put $dir into your PATH: docker looks for it there." }
Write-Host "Next: docker-credential-atcr login $registry"
