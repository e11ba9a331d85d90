// What pytest sees: the kernels of csrc/cuda on the emulator. Tensors are passed as addresses, geometries as lists.
#include <cxxabi.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <map>

#include "columns/columns.h"
#include "convolutions.h"
#include "cuda/depthwise/depthwise_launch.h"
#include "emulator.h"
#include "probes.h"

namespace py = pybind11;
using namespace unfoldconv;

namespace {

using List = std::vector<int64_t>;
using Address = uintptr_t;

template <size_t Size>
void copy(const List& from, int64_t (&to)[Size]) {
  if (from.size() != Size) throw std::invalid_argument("a list has the wrong length");
  std::copy(from.begin(), from.end(), to);
}

template <int Rank>
Geometry<Rank> geometry_of(const std::map<std::string, List>& fields) {
  Geometry<Rank> result;
  copy(fields.at("image"), result.image);
  copy(fields.at("positions"), result.positions);
  copy(fields.at("kernel"), result.kernel);
  copy(fields.at("stride"), result.stride);
  copy(fields.at("dilation"), result.dilation);
  copy(fields.at("padding_low"), result.padding_low);
  return result;
}

template <int Rank>
PlaneLayout<Rank> layout_of(const std::map<std::string, List>& fields) {
  PlaneLayout<Rank> result;
  copy(fields.at("count"), result.count);
  copy(fields.at("stride"), result.stride);
  copy(fields.at("axis_stride"), result.axis_stride);
  return result;
}

// Calls f<Rank>().
template <class F>
void dispatch_rank(size_t rank, F&& f) {
  switch (rank) {
    case 1: return f.template operator()<1>();
    case 2: return f.template operator()<2>();
    case 3: return f.template operator()<3>();
    default: throw std::invalid_argument("the rank must be 1, 2 or 3");
  }
}

void run_im2col(Address image, ScalarType from, const std::map<std::string, List>& layout,
                const std::map<std::string, List>& geometry, int64_t first, int64_t count, Address columns,
                ScalarType to) {
  dispatch_rank(geometry.at("image").size(), [&]<int Rank>() {
    cuda::im2col<Rank>(nullptr, reinterpret_cast<void*>(image), from, layout_of<Rank>(layout),
                       geometry_of<Rank>(geometry), {first, count}, reinterpret_cast<void*>(columns), to);
  });
}

void run_col2im(Address columns, ScalarType dtype, int64_t batch, int64_t channels, const List& column_stride,
                const std::map<std::string, List>& geometry, Address image) {
  int64_t strides[3];
  copy(column_stride, strides);
  dispatch_rank(geometry.at("image").size(), [&]<int Rank>() {
    cuda::col2im<Rank>(nullptr, reinterpret_cast<void*>(columns), dtype, batch, channels, strides,
                       geometry_of<Rank>(geometry), reinterpret_cast<void*>(image));
  });
}

void run_store(Address values, ScalarType from, Address bias, int64_t first, int64_t count, const List& positions,
               const std::map<std::string, List>& layout, Address output, ScalarType to, bool accumulate) {
  dispatch_rank(positions.size(), [&]<int Rank>() {
    int64_t sizes[Rank];
    copy(positions, sizes);
    cuda::store<Rank>(nullptr, reinterpret_cast<void*>(values), from, reinterpret_cast<void*>(bias), {first, count},
                      sizes, layout_of<Rank>(layout), reinterpret_cast<void*>(output), to, accumulate);
  });
}

using Fields = std::map<std::string, List>;

// Geometries and layouts of any rank, as the direct kernels take them.
Geometry<3> three_axes(const Fields& geometry) {
  Geometry<3> result;
  dispatch_rank(geometry.at("image").size(),
                [&]<int Rank>() { result = with_leading_axes<3>(geometry_of<Rank>(geometry)); });
  return result;
}

cuda::DirectOperand direct_operand(Address data, const Fields& layout) {
  cuda::DirectOperand result{reinterpret_cast<void*>(data), {}};
  dispatch_rank(layout.at("axis_stride").size(),
                [&]<int Rank>() { result.layout = with_leading_axes<3>(layout_of<Rank>(layout)); });
  return result;
}

py::dict fields_of(const cuda::DirectPlan& plan) {
  py::dict result;
  result["fits"] = plan.fits;
  result["blocks"] = plan.blocks;
  result["shared_bytes"] = plan.shared_bytes;
  result["rows"] = plan.rows;
  result["columns"] = plan.columns;
  result["planes"] = plan.planes;
  result["splits"] = plan.splits;
  result["workspace_bytes"] = plan.workspace_bytes;
  return result;
}

py::dict run_correlate_direct(ScalarType dtype, bool backward, const Fields& geometry, Address source,
                              const Fields& source_layout, Address weight, const Fields& weight_layout, Address result,
                              const Fields& result_layout, Address bias) {
  const cuda::DirectCorrelation problem = {dtype,
                                           backward,
                                           three_axes(geometry),
                                           direct_operand(source, source_layout),
                                           direct_operand(weight, weight_layout),
                                           direct_operand(result, result_layout),
                                           reinterpret_cast<void*>(bias)};
  const auto plan = cuda::plan_direct(problem);
  if (plan->fits) cuda::correlate_direct(nullptr, problem, *plan);
  return fields_of(*plan);
}

py::dict run_weight_sums_direct(ScalarType dtype, const Fields& geometry, Address gradient,
                                const Fields& gradient_layout, Address image, const Fields& image_layout,
                                Address result, int64_t workspace_limit, Address workspace) {
  const cuda::DirectWeightSums problem = {dtype, three_axes(geometry), direct_operand(gradient, gradient_layout),
                                          direct_operand(image, image_layout), reinterpret_cast<void*>(result)};
  // The address is of as much memory as the plan asks for; without one there is only the plan.
  const auto plan = cuda::plan_direct(problem, workspace_limit);
  if (plan->fits && workspace != 0)
    cuda::weight_sums_direct(nullptr, problem, *plan, reinterpret_cast<void*>(workspace));
  return fields_of(*plan);
}

std::string demangle(const char* name) {
  const std::unique_ptr<char, void (*)(void*)> text(abi::__cxa_demangle(name, nullptr, nullptr, nullptr), std::free);
  return text.get();
}

}  // namespace

PYBIND11_MODULE(emulated, module) {
  py::enum_<ScalarType>(module, "DType", py::module_local())
      .value("bool", ScalarType::Bool)
      .value("uint8", ScalarType::Byte)
      .value("int8", ScalarType::Char)
      .value("int16", ScalarType::Short)
      .value("int32", ScalarType::Int)
      .value("int64", ScalarType::Long)
      .value("float16", ScalarType::Half)
      .value("bfloat16", ScalarType::BFloat16)
      .value("float32", ScalarType::Float)
      .value("float64", ScalarType::Double)
      .value("complex64", ScalarType::ComplexFloat)
      .value("complex128", ScalarType::ComplexDouble);

  module.def("im2col", run_im2col);
  module.def("col2im", run_col2im);
  module.def("store", run_store);
  define_convolutions(module);
  module.def("correlate_direct", run_correlate_direct);
  module.def("weight_sums_direct", run_weight_sums_direct);

  py::enum_<emulator::Order>(module, "Order", py::module_local())
      .value("forward", emulator::Order::forward)
      .value("reverse", emulator::Order::reverse)
      .value("shuffled", emulator::Order::shuffled)
      .value("by_warp", emulator::Order::by_warp);
  module.def("set_schedule", emulator::set_schedule, py::arg("order"), py::arg("seed") = 0);
  module.def("set_limits", cuda::set_limits, py::arg("index"), py::arg("blocks"), py::arg("busy") = 128,
             py::arg("segment") = 32);
  module.def("set_fault", [](const std::string& name) { emulator::fault = name; });
  module.def("launch_count", emulator::launch_count);
  module.def("last_launch", [] {
    const emulator::Launch& last = emulator::last_launch();
    return py::make_tuple(demangle(last.kernel), last.grid.x, last.block.x);
  });

  py::class_<emulator::Guarded>(module, "Guarded", py::buffer_protocol(), py::module_local())
      .def(py::init<size_t, bool>(), py::arg("bytes"), py::arg("guard_end"))
      .def_buffer([](emulator::Guarded& memory) {
        return py::buffer_info(memory.data(), static_cast<py::ssize_t>(memory.size()));
      });

  const auto ints = [](Address address) { return reinterpret_cast<int*>(address); };
  module.def("probe", [=](const std::string& name, const std::vector<unsigned>& grid,
                          const std::vector<unsigned>& block, size_t shared_bytes, Address in,
                          Address out) { cuda::probe(name, grid, block, shared_bytes, ints(in), ints(out)); });
  module.def("probe_launch", [=](const std::string& name, int64_t blocks, Address in, Address out) {
    cuda::probe_launch(name, blocks, ints(in), ints(out));
  });
  module.def("probe_divider",
             [](int bits, int count, Address dividends, int64_t divisor, Address quotients, Address remainders) {
               cuda::probe_divider(bits, count, reinterpret_cast<int64_t*>(dividends), divisor,
                                   reinterpret_cast<int64_t*>(quotients), reinterpret_cast<int64_t*>(remainders));
             });
}
