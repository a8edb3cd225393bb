#include "innervoice/thread_team.h"

#include <algorithm>
#include <chrono>
#include <fstream>
#include <new>
#include <set>
#include <stdexcept>
#include <string>

#if defined(__linux__)
#include <pthread.h>
#include <sched.h>
#endif
#if defined(__unix__) || defined(__APPLE__)
#include <unistd.h>
#endif

namespace innervoice {
namespace {

constexpr int kMostThreads = 256;
constexpr int kLooksPerClock = 16;  // looks at the phase between two looks at the clock

long process_id() {
#if defined(__unix__) || defined(__APPLE__)
  return static_cast<long>(getpid());
#else
  return 0;
#endif
}

void relax() {
#if defined(__x86_64__) || defined(__i386__)
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  asm volatile("yield");
#endif
}

#if defined(__linux__)
// The first processor of each usable core, in order.
std::vector<int> usable_processors() {
  cpu_set_t mask;
  CPU_ZERO(&mask);
  std::vector<int> processors;
  if (sched_getaffinity(0, sizeof(mask), &mask) != 0) return processors;
  std::set<std::string> cores;
  for (int cpu = 0; cpu < CPU_SETSIZE; ++cpu) {
    if (!CPU_ISSET(cpu, &mask)) continue;
    std::ifstream file("/sys/devices/system/cpu/cpu" + std::to_string(cpu) +
                       "/topology/thread_siblings_list");
    std::string siblings;
    if (!std::getline(file, siblings)) siblings = "alone " + std::to_string(cpu);
    if (cores.insert(siblings).second) processors.push_back(cpu);
  }
  return processors;
}

int this_processor() { return sched_getcpu(); }

// Keeps the calling thread off `processor`, on those that the process's first thread may use.
void stay_off(int processor) {
  cpu_set_t others;
  if (sched_getaffinity(getpid(), sizeof(others), &others) != 0) return;
  CPU_CLR(processor, &others);
  if (CPU_COUNT(&others) > 0) sched_setaffinity(0, sizeof(others), &others);
}

void pin_to(std::thread::native_handle_type thread, int processor) {
  cpu_set_t mask;
  CPU_ZERO(&mask);
  CPU_SET(processor, &mask);
  pthread_setaffinity_np(thread, sizeof(mask),
                         &mask);  // a wish: where it is refused the thread runs anywhere
}
#else
std::vector<int> usable_processors() { return {}; }
void pin_to(std::thread::native_handle_type, int) {}
int this_processor() { return -1; }
void stay_off(int) {}
#endif

int checked(int num_threads) {
  if (num_threads < 0 || num_threads > kMostThreads) {
    throw std::invalid_argument("num_threads is " + std::to_string(num_threads) + ": use 1 to " +
                                std::to_string(kMostThreads) + ", or 0 for one a core");
  }
  return num_threads == 0 ? num_usable_cores() : num_threads;
}

}  // namespace

int num_usable_cores() {
  const int found = static_cast<int>(usable_processors().size());
  if (found > 0) return std::min(found, kMostThreads);
  return std::clamp(static_cast<int>(std::thread::hardware_concurrency()), 1, kMostThreads);
}

void Member::meet() {
  victim_ = 0;
  team_->meet(num_threads_);
}

bool Member::take(std::int64_t count, std::int64_t grain, std::int64_t& first, std::int64_t& last) {
  const std::int64_t pieces = (count + grain - 1) / grain;
  for (; victim_ < num_threads_; ++victim_) {
    const int owner = (index_ + victim_) % num_threads_;
    const std::int64_t begin = pieces * owner / num_threads_, end = pieces * (owner + 1) / num_threads_;
    if (begin == end) continue;
    const std::int64_t piece = begin + team_->shares_[owner].taken.fetch_add(1, std::memory_order_relaxed);
    if (piece >= end) continue;
    first = piece * grain;
    last = std::min(first + grain, count);
    return true;
  }
  return false;
}

ThreadTeam::ThreadTeam(int num_threads, bool pin, int spin_us)
    : num_threads_(checked(num_threads)), owner_(process_id()), spin_us_(spin_us) {
  if (spin_us < 0) throw std::invalid_argument("spin_us is " + std::to_string(spin_us) + ": use 0 or more");
  const std::vector<int> processors = usable_processors();
  const bool has_cores = num_threads_ <= static_cast<int>(processors.size());
  if (!processors.empty() && !has_cores) spin_us_ = 0;
  keeps_apart_ = has_cores && !pin;
  shares_ = std::make_unique<Share[]>(static_cast<std::size_t>(num_threads_));
  threads_.reserve(static_cast<std::size_t>(num_threads_ - 1));
  for (int index = 1; index < num_threads_; ++index) {
    threads_.emplace_back([this, index] { work(index); });
    if (pin && !processors.empty()) {
      pin_to(threads_.back().native_handle(),
             processors[static_cast<std::size_t>(index) % processors.size()]);
    }
  }
}

ThreadTeam::~ThreadTeam() {
  if (process_id() != owner_) {  // the threads are another process's
    for (std::thread& thread : threads_) thread.detach();
    new (&wake_) std::condition_variable;  // destroying one with waiters waits for them, who are not here
    return;
  }
  stop_ = true;
  if (num_threads_ > 1) meet(num_threads_);
  for (std::thread& thread : threads_) thread.join();
}

void ThreadTeam::run_job(Job job, void* context) {
  const std::lock_guard<std::mutex> lock(one_job_);
  const int num_threads = process_id() == owner_ ? num_threads_ : 1;
  job_ = job;
  context_ = context;
  if (keeps_apart_) caller_processor_ = this_processor();
  Member member(this, 0, num_threads);
  meet(num_threads);  // the others wait for work there
  job(context, member);
  meet(num_threads);
}

void ThreadTeam::work(int index) {
  for (;;) {
    meet(num_threads_);
    if (stop_) return;
    if (keeps_apart_ && this_processor() == caller_processor_) stay_off(caller_processor_);
    Member member(this, index, num_threads_);
    job_(context_, member);
    meet(num_threads_);
  }
}

void ThreadTeam::meet(int num_threads) {
  const std::uint32_t phase = phase_.load(std::memory_order_relaxed);
  if (arrived_.fetch_add(1, std::memory_order_acq_rel) + 1 < num_threads) {
    wait_past(phase);
    return;
  }
  // Nobody else runs: what counts the pieces begins anew.
  for (int index = 0; index < num_threads; ++index) shares_[index].taken.store(0, std::memory_order_relaxed);
  arrived_.store(0, std::memory_order_relaxed);
  phase_.store(phase + 1, std::memory_order_seq_cst);
  if (sleepers_.load(std::memory_order_seq_cst) > 0) {
    {
      const std::lock_guard<std::mutex> lock(mutex_);
    }  // who is about to sleep sleeps, or has seen the phase
    wake_.notify_all();
  }
}

void ThreadTeam::wait_past(std::uint32_t phase) {
  const auto moved = [&] { return phase_.load(std::memory_order_seq_cst) != phase; };
  if (spin_us_ > 0) {
    const auto end = std::chrono::steady_clock::now() + std::chrono::microseconds(spin_us_);
    do {
      for (int look = 0; look < kLooksPerClock; ++look) {
        if (phase_.load(std::memory_order_acquire) != phase) return;
        relax();
      }
    } while (std::chrono::steady_clock::now() < end);
  }
  sleepers_.fetch_add(1, std::memory_order_seq_cst);
  {
    std::unique_lock<std::mutex> lock(mutex_);
    wake_.wait(lock, moved);
  }
  sleepers_.fetch_sub(1, std::memory_order_relaxed);
}

}  // namespace innervoice
