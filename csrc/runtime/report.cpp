#include "runtime/report.h"

#include <torch/csrc/stable/library.h>

#include <optional>

#include "generated/registration.h"

namespace unfoldconv {
namespace {

thread_local std::optional<Report> current;

std::string field(const char* name, const std::string& value) { return std::string("\t") + name + "=" + value; }

std::string field(const char* name, int64_t value) { return field(name, std::to_string(value)); }

}  // namespace

Report* Report::wanted() { return current ? &*current : nullptr; }

void Report::begin(bool considered) {
  current.emplace();
  current->considered_ = considered;
}

std::string Report::end() {
  std::string text = current ? current->text_ : "";
  current.reset();
  return text;
}

void Report::op(const char* name, double flops, double bytes) {
  text_ += "op" + field("name", name) + field("flops", static_cast<int64_t>(flops)) +
           field("bytes", static_cast<int64_t>(bytes)) + "\n";
}

void Report::consider(const char* engine, const char* reason) {
  text_ += "considered" + field("name", engine) + field("reason", reason ? reason : "") + "\n";
}

void Report::engine(const char* name, const Plan& plan) {
  const std::string tile = plan.tile_rows ? std::to_string(plan.tile_rows) + "x" + std::to_string(plan.tile_lanes) : "";
  text_ += "engine" + field("name", name) + field("tile", tile) + field("tasks", plan.tasks) +
           field("thread_bytes", plan.thread_bytes) + field("shared_bytes", plan.shared_bytes + plan.copied_bytes) +
           field("phases", plan.phases) + field("splits", plan.splits) + field("why", plan.why) + "\n";
}

}  // namespace unfoldconv

STABLE_TORCH_LIBRARY_FRAGMENT(UNFOLDCONV_NAMESPACE, library) {
  library.def("begin_report(bool considered) -> ()");
  library.def("end_report() -> str");
}

STABLE_TORCH_LIBRARY_IMPL(UNFOLDCONV_NAMESPACE, CompositeExplicitAutograd, library) {
  library.impl("begin_report", TORCH_BOX(&unfoldconv::Report::begin));
  library.impl("end_report", TORCH_BOX(&unfoldconv::Report::end));
}
