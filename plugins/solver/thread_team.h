// Threads that take numbered tasks together, round after round.
#pragma once

#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <functional>
#include <mutex>
#include <thread>
#include <vector>

namespace va {

// Waiting threads sleep: on a busy machine a spinning one takes the time of the thread it waits for.
class ThreadTeam {
 public:
  // The caller is one of the threads. Where the system gives fewer than asked for, there are fewer.
  explicit ThreadTeam(int threads) {
    try {
      for (int i = 1; i < threads; ++i) helpers_.emplace_back([this, i] { help(i); });
    } catch (const std::system_error&) {
    }
  }

  ~ThreadTeam() {
    {
      std::lock_guard<std::mutex> lock(mutex_);
      is_over_ = true;
    }
    start_.notify_all();
    for (std::thread& helper : helpers_) helper.join();
  }

  ThreadTeam(const ThreadTeam&) = delete;
  ThreadTeam& operator=(const ThreadTeam&) = delete;

  // Calls task(thread, i) once for each i in [0, count), in any order; returns when all are done.
  void run(int64_t count, const std::function<void(int, int64_t)>& task) {
    {
      std::lock_guard<std::mutex> lock(mutex_);
      task_ = &task;
      count_ = count;
      next_ = 0;
      working_ = static_cast<int>(helpers_.size());
      ++round_;
    }
    start_.notify_all();
    take_tasks(0);
    std::unique_lock<std::mutex> lock(mutex_);
    done_.wait(lock, [this] { return working_ == 0; });
  }

 private:
  void take_tasks(int thread) {
    for (int64_t i = next_++; i < count_; i = next_++) (*task_)(thread, i);
  }

  void help(int thread) {
    for (int64_t seen = 0;;) {
      std::unique_lock<std::mutex> lock(mutex_);
      start_.wait(lock, [&] { return is_over_ || round_ != seen; });
      if (is_over_) return;
      seen = round_;
      lock.unlock();
      take_tasks(thread);
      lock.lock();
      if (--working_ == 0) done_.notify_one();
    }
  }

  std::mutex mutex_;
  std::condition_variable start_, done_;
  std::atomic<int64_t> next_{0};
  const std::function<void(int, int64_t)>* task_ = nullptr;
  int64_t count_ = 0, round_ = 0;
  int working_ = 0;
  bool is_over_ = false;
  std::vector<std::thread> helpers_;
};

}  // namespace va
