# Loads the Homebrew formula with a stand-in for Homebrew, and runs its `install` in this repository: every file that it installs has to be
# here, and every call has to exist in Homebrew's language as used here. Its `test` runs with the binary of this build.
#
#   ruby contrib/checks/homebrew.rb BINARY
require "fileutils"
require "open3"
require "pathname"
require "tmpdir"

REPOSITORY = Pathname(__dir__).parent.parent
BINARY = Pathname(ARGV.fetch(0)).realpath

def fail_with(words)
  warn "FAILED: the formula: #{words}"
  exit 1
end

# A folder of the installed formula, which records what is installed into it.
class Keg
  attr_reader :files

  def initialize
    @files = []
  end

  def install(*what)
    what.flatten.each do |one|
      (one.is_a?(Hash) ? one.keys : [one]).each do |name|
        fail_with "it installs #{name}, which is not in the repository" unless (REPOSITORY/name).exist?
        @files << name
      end
    end
  end
end

# The part of Homebrew's language that a formula may use. Any other name ends this program.
class Formula
  class << self
    attr_reader :said, :service_block, :test_block

    def record(name, value)
      (@said ||= {})[name] = value
    end

    def desc(text) = record(:desc, text)
    def homepage(url) = record(:homepage, url)
    def license(name) = record(:license, name)
    def head(url, using:, branch:) = record(:head, [url, using, branch])
    def depends_on(what) = record(:depends_on, what)
    def service(&block) = @service_block = block
    def test(&block) = @test_block = block
  end

  attr_reader :commands, :man1, :bash_completion, :zsh_completion, :fish_completion, :pkgshare, :testpath

  def initialize(testpath)
    @testpath = testpath
    @commands = []
    @man1, @bash_completion, @zsh_completion, @fish_completion, @pkgshare = Array.new(5) { Keg.new }
  end

  def bin = BINARY.parent
  def std_cargo_args = ["--locked", "--root=PREFIX", "--path=."]

  def system(*arguments)
    return @commands << arguments.map(&:to_s) if arguments.first == "cargo"

    fail_with "#{arguments.join(" ")} failed" unless Kernel.system(*arguments.map(&:to_s), err: File::NULL)
  end

  def shell_output(command, expected = 0)
    output, status = Open3.capture2(command)
    fail_with "#{command} exits with #{status.exitstatus}, not #{expected}" unless status.exitstatus == expected
    output
  end

  def assert_match(pattern, text)
    fail_with "no #{pattern} in #{text[0, 200]}" unless text.match?(pattern)
  end
end

# Declarations of a service.
class Service
  attr_reader :said

  def initialize = @said = {}
  def opt_bin = Pathname("/opt/homebrew/opt/opik-offline/bin")
  def var = Pathname("/opt/homebrew/var")
  def run(command) = @said[:run] = command.map(&:to_s)
  def keep_alive(when_) = @said[:keep_alive] = when_
  def process_type(kind) = @said[:process_type] = kind
  def error_log_path(path) = @said[:log] = path.to_s
end

load REPOSITORY/"contrib/homebrew/opik-offline.rb"
cargo = (REPOSITORY/"Cargo.toml").read
said = OpikOffline.said
fail_with "desc is not that of Cargo.toml" unless cargo.include?(%(description = "#{said[:desc]}"))
fail_with "license is not that of Cargo.toml" unless cargo.include?(%(license = "#{said[:license]}"))
fail_with "desc is too long for Homebrew" if said[:desc].length > 80
fail_with "it is not built from git" unless said[:head][1] == :git

Dir.mktmpdir do |folder|
  ENV["HOME"] = folder
  ENV.delete_if { |name, _| name.start_with?("OPIK_") }
  formula = OpikOffline.new(Pathname(folder))
  Dir.chdir(REPOSITORY) { formula.install }
  fail_with "it builds with #{formula.commands}" unless formula.commands.one? && formula.commands[0][0, 2] == %w[cargo install]
  pages = (REPOSITORY/"man").glob("*.1").length
  fail_with "it installs #{formula.man1.files.length} of #{pages} manual pages" unless formula.man1.files.length == pages
  Dir.chdir(folder) { formula.instance_exec(&OpikOffline.test_block) }
end

service = Service.new
service.instance_exec(&OpikOffline.service_block)
plist = (REPOSITORY/"contrib/launchd/opik-offline.plist").read
fail_with "its service does not run an agent" unless service.said[:run].last == "agent"
fail_with "its service is not that of contrib/launchd" unless service.said[:keep_alive] == { successful_exit: false } &&
                                                            service.said[:process_type] == :interactive && plist.include?("Interactive")
