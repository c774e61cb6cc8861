# frozen_string_literal: true

# Sidekiq: `ruby sidekiq_client.rb produce …`; the worker is its own command, `sidekiq -r ./sidekiq_client.rb`.  ../contract.py is the contract.

require "json"
require "sidekiq"

URL = "redis://127.0.0.1:#{ENV.fetch("BENCH_PORT")}/0"
SETTINGS = JSON.parse(ENV.fetch("BENCH_SETTINGS"))
STAMPS = ENV.fetch("BENCH_STAMPS") == "1"
LOW_LOAD_S = 0.01
MARKS = File.open(ENV.fetch("BENCH_MARKS"), File::WRONLY | File::APPEND | File::CREAT, 0o666)

Sidekiq.configure_client { |config| config.redis = { url: URL } }
Sidekiq.configure_server { |config| config.redis = { url: URL } }
Sidekiq.logger.level = Logger::ERROR
Sidekiq.strict_args! if Sidekiq.respond_to?(:strict_args!)

def now = Process.clock_gettime(Process::CLOCK_MONOTONIC, :nanosecond)
def payload(n) = { "to" => "user@example.com", "n" => n }

class Work
  include Sidekiq::Worker
  sidekiq_options retry: false

  def perform(data)
    MARKS.syswrite(STAMPS ? [data["n"], now].pack("qq") : "x")
  end
end

def one_by_one(numbers)
  started_ns = now
  numbers.each { |n| Work.perform_async(payload(n)) }
  { started_ns: started_ns, ended_ns: now }
end

def bulk(numbers)
  started_ns = now
  numbers.each_slice(SETTINGS["batch"]) { |slice| Sidekiq::Client.push_bulk("class" => Work, "args" => slice.map { |n| [payload(n)] }) }
  { started_ns: started_ns, ended_ns: now }
end

def low_load(numbers)
  begin_ns = now
  sent_ns = numbers.each_with_index.map do |n, i|
    sleep([0, LOW_LOAD_S * i - (now - begin_ns) / 1e9].max)
    sent = now
    Work.perform_async(payload(n))
    sent
  end
  { sent_ns: sent_ns }
end

if ARGV[0] == "produce"
  mode, first, tasks = ARGV[1], Integer(ARGV[2]), Integer(ARGV[3])
  Sidekiq.redis(&:ping)
  $stdout.sync = true
  puts "ready"
  $stdin.gets
  puts JSON.generate(send(mode, first...(first + tasks)))
elsif ARGV[0] == "work"
  exec("sidekiq", "-r", File.expand_path(__FILE__), "-c", SETTINGS["concurrency"].to_s, "-q", "default", "-t", "1")
end
