// Python bindings: whole-buffer functions only, the interpreter lock released while they run.
//
// The binding refuses what would read or write out of bounds; messages for users come from kernels/dispatch.py.
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <optional>
#include <stdexcept>
#include <utility>
#include <vector>

#include "guidance.h"
#include "table_row.h"
#include "to_uint8.h"
#include "unit_noise.h"

namespace py = pybind11;
using namespace distill_rt;

namespace {

template <typename T>
using Array = py::array_t<T, py::array::c_style>;
using Floats = Array<float>;
using Terms = std::vector<std::pair<float, Floats>>;

void require(bool condition, const char* message) {
    if (!condition) throw std::invalid_argument(message);
}

// All buffers of one call: sizes must agree; an output may equal an input, but nothing may overlap by a part.
class Buffers {
  public:
    explicit Buffers(py::ssize_t num_elements) : num_elements_(num_elements) {}

    const float* input(const Floats& array) {
        require(array.size() == num_elements_, "all arrays must have the same number of elements");
        const float* const data = array.data();
        for (const float* output : outputs_) require(data == output || apart(data, output), "arrays overlap");
        inputs_.push_back(data);
        return data;
    }

    float* output(Floats& array) {
        require(array.size() == num_elements_, "all arrays must have the same number of elements");
        float* const data = array.mutable_data();  // throws if read-only
        for (const float* other : outputs_) require(apart(data, other), "outputs overlap");
        for (const float* input : inputs_) require(data == input || apart(data, input), "arrays overlap");
        outputs_.push_back(data);
        return data;
    }

    const float* input(const std::optional<Floats>& array) { return array ? input(*array) : nullptr; }
    float* output(std::optional<Floats>& array) { return array ? output(*array) : nullptr; }

  private:
    bool apart(const float* first, const float* second) const {
        const auto a = reinterpret_cast<std::uintptr_t>(first), b = reinterpret_cast<std::uintptr_t>(second);
        return (a < b ? b - a : a - b) >= static_cast<std::uintptr_t>(num_elements_) * sizeof(float);
    }

    py::ssize_t num_elements_;
    std::vector<const float*> inputs_, outputs_;
};

void bind_unit_noise(const Array<std::uint64_t>& seeds, std::uint32_t stream, Floats& out, int num_threads) {
    const std::int64_t num_images = seeds.size();
    require(num_images > 0 && out.size() % num_images == 0, "out must hold the same number of elements per seed");
    const std::uint64_t* const seed_data = seeds.data();
    float* const data = out.mutable_data();
    py::gil_scoped_release release;
    unit_noise(seed_data, num_images, out.size() / num_images, stream, num_threads, data);
}

void bind_table_row(const Floats& x, const std::optional<Floats>& F, std::pair<float, float> prediction, float clip,
                    bool folded, std::pair<float, float> weights, const Terms& terms, float next_c_in, Floats& out,
                    std::optional<Floats>& x0_out, std::optional<Floats>& scaled_out, int num_threads) {
    require(terms.size() <= TableRow::kMaxTerms, "at most six terms");
    require(!x0_out || F, "without F there is no x0");
    Buffers buffers(x.size());
    TableRow row{};
    row.x = buffers.input(x);
    row.F = buffers.input(F);
    row.p = prediction.first, row.q = prediction.second, row.clip = clip;
    row.folded = folded, row.a = weights.first, row.b = weights.second;
    for (const auto& [weight, buffer] : terms) row.terms[row.num_terms++] = {weight, buffers.input(buffer)};
    row.next_c_in = next_c_in;
    row.out = buffers.output(out);
    row.x0_out = buffers.output(x0_out);
    row.scaled = buffers.output(scaled_out);
    const std::int64_t num_elements = x.size();
    py::gil_scoped_release release;
    table_row(row, num_elements, num_threads);
}

void bind_combine_guidance(const Floats& F_u, const Floats& F_c, const Floats& w, Floats& out, int num_threads) {
    const std::int64_t num_images = w.size();
    require(num_images > 0 && out.size() % num_images == 0, "one w per image");
    Buffers buffers(out.size());
    const float* const u = buffers.input(F_u);
    const float* const c = buffers.input(F_c);
    const float* const w_data = w.data();
    float* const data = buffers.output(out);
    py::gil_scoped_release release;
    combine_guidance(u, c, w_data, num_images, out.size() / num_images, num_threads, data);
}

void bind_to_uint8(const Floats& x_BCHW, Array<std::uint8_t>& out_BHWC, int num_threads) {
    require(x_BCHW.ndim() == 4 && out_BHWC.ndim() == 4, "four dimensions");
    const py::ssize_t B = x_BCHW.shape(0), C = x_BCHW.shape(1), H = x_BCHW.shape(2), W = x_BCHW.shape(3);
    require(out_BHWC.shape(0) == B && out_BHWC.shape(1) == H && out_BHWC.shape(2) == W && out_BHWC.shape(3) == C,
            "out must be (B, H, W, C)");
    const float* const x = x_BCHW.data();
    std::uint8_t* const data = out_BHWC.mutable_data();
    py::gil_scoped_release release;
    to_uint8(x, B, C, H * W, num_threads, data);
}

}  // namespace

PYBIND11_MODULE(_native, module) {
    module.doc() = "Native CPU kernels of distill-rt; call them through distill_rt.kernels.";
    // noconvert: another dtype or layout is a TypeError, never a silent copy (an output would be lost in it).
    module.def("unit_noise", &bind_unit_noise, py::arg("seeds").noconvert(), py::arg("stream"),
               py::arg("out").noconvert(), py::arg("num_threads"));
    module.def("table_row", &bind_table_row, py::arg("x").noconvert(), py::arg("F").noconvert(), py::arg("prediction"),
               py::arg("clip"), py::arg("folded"), py::arg("weights"), py::arg("terms").noconvert(),
               py::arg("next_c_in"), py::arg("out").noconvert(), py::arg("x0_out").noconvert(),
               py::arg("scaled_out").noconvert(), py::arg("num_threads"));
    module.def("combine_guidance", &bind_combine_guidance, py::arg("F_u").noconvert(), py::arg("F_c").noconvert(),
               py::arg("w").noconvert(), py::arg("out").noconvert(), py::arg("num_threads"));
    module.def("to_uint8", &bind_to_uint8, py::arg("x_BCHW").noconvert(), py::arg("out_BHWC").noconvert(),
               py::arg("num_threads"));
}
