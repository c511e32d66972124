# A Homebrew formula; deploy/release.sh fills in what stands between @.
class DockerCredentialAtcr < Formula
  desc "Sign in to ATCR container registries with an atproto account"
  homepage "https://atcr.io"
  version "@VERSION@"
  license "MIT"

  on_macos do
    on_arm do
      url "@URL@/docker-credential-atcr_darwin_arm64"
      sha256 "@SUM_darwin_arm64@"
    end
    on_intel do
      url "@URL@/docker-credential-atcr_darwin_amd64"
      sha256 "@SUM_darwin_amd64@"
    end
  end

  on_linux do
    on_arm do
      url "@URL@/docker-credential-atcr_linux_arm64"
      sha256 "@SUM_linux_arm64@"
    end
    on_intel do
      url "@URL@/docker-credential-atcr_linux_amd64"
      sha256 "@SUM_linux_amd64@"
    end
  end

  def install
    bin.install Dir["docker-credential-atcr_*"].first => "docker-credential-atcr"
    generate_completions_from_executable(bin/"docker-credential-atcr", "completion")
  end

  test do
    assert_match "docker-credential-atcr", shell_output("#{bin}/docker-credential-atcr version")
  end
end
