# Homebrew formula. Nothing is published, so there is no archive to download and no bottle: it builds from the head of a git repository,
# with Rust, in a few minutes. Put it into a tap of your own, and name your clone or its address:
#
#   brew tap-new you/opik
#   cp contrib/homebrew/opik-offline.rb "$(brew --repository you/opik)/Formula/"
#   HOMEBREW_OPIK_OFFLINE_GIT=file:///path/to/clone brew install --HEAD you/opik/opik-offline
#
# Then `opik-offline agent -- COMMAND`, or an agent that stays up: `brew services start opik-offline`. Settings are read from ~/.opik.config
# and ~/Library/Application Support/opik-offline/config.yaml (on Linux ~/.config/opik-offline/config.yaml). Deliver what is stored
# before `brew uninstall`, which leaves the store.
class OpikOffline < Formula
  desc "Store-and-forward agent for Opik: keeps LLM traces through an outage"
  # Opik's: this project has no page of its own.
  homepage "https://github.com/comet-ml/opik"
  license "Apache-2.0"
  # Homebrew passes variables on whose names begin with HOMEBREW_.
  head ENV.fetch("HOMEBREW_OPIK_OFFLINE_GIT", "file:///set/HOMEBREW_OPIK_OFFLINE_GIT"), using: :git, branch: "main"

  depends_on "rust" => :build

  def install
    system "cargo", "install", "--bin", "opik-offline", *std_cargo_args
    man1.install Dir["man/*.1"]
    bash_completion.install "completions/opik-offline.bash" => "opik-offline"
    zsh_completion.install "completions/_opik-offline"
    fish_completion.install "completions/opik-offline.fish"
    pkgshare.install "schemas"
  end

  service do
    run [opt_bin/"opik-offline", "agent"]
    # Restarted after a crash, not after a clean exit.
    keep_alive successful_exit: false
    # Not throttled like background work: applications wait for its answers.
    process_type :interactive
    error_log_path var/"log/opik-offline.log"
  end

  test do
    assert_match(/\Aopik-offline \d/, shell_output("#{bin}/opik-offline --version"))
    # A command in front of a server that is away keeps its exit code.
    db = testpath/"store.db"
    upstream = "http://127.0.0.1:9/api"
    system bin/"opik-offline", "agent", "--db", db, "--upstream", upstream, "--", "true"
    shell_output("#{bin}/opik-offline agent --db #{db} --upstream #{upstream} -- sh -c 'exit 7' 2>/dev/null", 7)
  end
end
