// What the ops of a thread would do, collected for `unfoldconv.explain` instead of doing it.
#pragma once

#include <string>

#include "runtime/job.h"

namespace unfoldconv {

class Report {
 public:
  // That of this thread, or null if its ops are to run.
  static Report* wanted();

  // Begins and ends a report of this thread. The text has a line for each op ("op", then fields), for each use of an
  // engine in it ("engine", then fields), and if `considered` one before that for each engine that was asked
  // ("considered", then its name and the reason why it declines, or nothing), a field being name=value between tabs.
  static void begin(bool considered);
  static std::string end();

  bool considered() const { return considered_; }

  void op(const char* name, double flops, double bytes);
  void consider(const char* engine, const char* reason);
  void engine(const char* name, const Plan& plan);

 private:
  std::string text_;
  bool considered_ = false;
};

}  // namespace unfoldconv
