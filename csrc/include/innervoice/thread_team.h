// Threads that wait for work together: kernels of microseconds are divided among them without asking the
// system each time.
//
//   team.run([&](Member& me) {
//     me.for_each(num_rows, 16, [&](std::int64_t first, std::int64_t last) { ... });  // ends when all rows
//     are done
//     ...
//   });
//
// Who waits spins for a bounded time and then sleeps, so that a neighbour that needs the core gets it. A
// thread that finds itself on the caller's processor goes to the others and stays there: the system would put
// two that wake each other by turns together, and leave them there, since neither lacks a processor for long.
// What is computed must not depend on which thread does it: for_each hands out pieces as threads come for
// them.
#pragma once

#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <memory>
#include <mutex>
#include <thread>
#include <vector>

namespace innervoice {

class ThreadTeam;

// Physical cores that this process may use: its affinity mask, one for all threads of a core.
int num_usable_cores();

// One thread's view of a running job.
class Member {
 public:
  int index() const { return index_; }
  int num_threads() const { return num_threads_; }

  // Waits until all threads of the team have come here; what they wrote before is seen behind it.
  void meet();

  // Calls body(first, last) for pieces of at most `grain` of [0, count), each piece once in the whole team,
  // then meets. A thread begins with its own share, a contiguous one, and then takes what others have left.
  template <typename Body>
  void for_each(std::int64_t count, std::int64_t grain, Body&& body) {
    std::int64_t first = 0, last = 0;
    while (take(count, grain, first, last)) body(first, last);
    meet();
  }

 private:
  friend class ThreadTeam;
  Member(ThreadTeam* team, int index, int num_threads)
      : team_(team), index_(index), num_threads_(num_threads) {}
  bool take(std::int64_t count, std::int64_t grain, std::int64_t& first, std::int64_t& last);

  ThreadTeam* team_;
  int index_;
  int num_threads_;
  int victim_ = 0;  // whose share is being taken from: own index + victim_
};

class ThreadTeam {
 public:
  // num_threads 0: num_usable_cores(). pin: each thread but the caller to a core of the affinity mask.
  // spin_us: how long a waiting thread looks before it sleeps; a team larger than the cores does not look at
  // all. Throws std::invalid_argument for negative numbers and for more than 256 threads.
  explicit ThreadTeam(int num_threads = 0, bool pin = false, int spin_us = 50);
  ~ThreadTeam();
  ThreadTeam(const ThreadTeam&) = delete;
  ThreadTeam& operator=(const ThreadTeam&) = delete;

  int num_threads() const { return num_threads_; }

  // Runs body(Member&) on every thread, the caller's among them, and returns when all have ended. One job at
  // a time: a second caller waits. The body must not throw and must not run a job of the same team. In a
  // process that was forked from the team's, where its threads are not, the caller does all the work.
  template <typename Body>
  void run(Body&& body) {
    run_job([](void* context,
               Member& member) { (*static_cast<std::remove_reference_t<Body>*>(context))(member); },
            const_cast<void*>(static_cast<const void*>(&body)));
  }

 private:
  friend class Member;
  using Job = void (*)(void*, Member&);

  struct alignas(64) Share {
    std::atomic<std::int64_t> taken{0};  // pieces of this thread's share that are handed out
  };

  void run_job(Job job, void* context);
  void work(int index);
  void meet(int num_threads);
  void wait_past(std::uint32_t phase);

  const int num_threads_;
  const long owner_;  // the process that has the threads
  int spin_us_;
  bool keeps_apart_ = false;   // there is a core for every thread, and the system chooses which
  int caller_processor_ = -1;  // of the running job
  std::mutex one_job_;
  Job job_ = nullptr;
  void* context_ = nullptr;
  bool stop_ = false;
  std::unique_ptr<Share[]> shares_;
  alignas(64) std::atomic<int> arrived_{0};
  alignas(64) std::atomic<std::uint32_t> phase_{0};  // meetings so far
  std::atomic<int> sleepers_{0};
  std::mutex mutex_;
  std::condition_variable wake_;
  std::vector<std::thread> threads_;
};

}  // namespace innervoice
