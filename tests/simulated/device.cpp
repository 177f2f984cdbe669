// A device for torch that lies in host memory and computes with the kernels of the CPU. An operation
// on tensors of two devices is an error, as on CUDA, and if asked for float64 is, as on Apple's GPUs.

#include <ATen/EmptyTensor.h>
#include <ATen/detail/PrivateUse1HooksInterface.h>
#include <ATen/native/Resize.h>
#include <ATen/ops/as_strided_cpu_dispatch.h>
#include <ATen/ops/set_native.h>
#include <ATen/ops/unfold_native.h>
#include <ATen/ops/view_native.h>
#include <c10/core/impl/DeviceGuardImplInterface.h>
#include <torch/extension.h>
#include <torch/library.h>

#include <cstdlib>
#include <cstring>

namespace {

using c10::IntArrayRef;
using c10::SymIntArrayRef;

constexpr auto kType = c10::DeviceType::PrivateUse1;
const c10::Device kDevice(kType, 0);

// What torch asks of every device: streams and events are there in name only.

struct Guard final : c10::impl::DeviceGuardImplInterface {
  static constexpr c10::DeviceType static_type = kType;
  static c10::Stream stream() { return c10::Stream(c10::Stream::DEFAULT, kDevice); }
  c10::DeviceType type() const override { return kType; }
  c10::Device exchangeDevice(c10::Device) const override { return kDevice; }
  c10::Device getDevice() const override { return kDevice; }
  void setDevice(c10::Device) const override {}
  void uncheckedSetDevice(c10::Device) const noexcept override {}
  c10::Stream getStream(c10::Device) const noexcept override { return stream(); }
  c10::Stream exchangeStream(c10::Stream) const noexcept override { return stream(); }
  c10::DeviceIndex deviceCount() const noexcept override { return 1; }
};
C10_REGISTER_GUARD_IMPL(PrivateUse1, Guard);

struct Allocator final : c10::Allocator {
  c10::DataPtr allocate(size_t bytes) override {
    void* memory = bytes ? std::aligned_alloc(64, (bytes + 63) / 64 * 64) : nullptr;
    return {memory, memory, &std::free, kDevice};
  }
  c10::DeleterFnPtr raw_deleter() const override { return &std::free; }
  void copy_data(void* to, const void* from, size_t bytes) const override {
    std::memcpy(to, from, bytes);
  }
};
Allocator allocator;
REGISTER_ALLOCATOR(kType, &allocator);

struct Hooks final : at::PrivateUse1HooksInterface {
  void init() const override {}
  bool hasPrimaryContext(c10::DeviceIndex) const override { return true; }
  bool isBuilt() const override { return true; }
  bool isAvailable() const override { return true; }
  c10::DeviceIndex deviceCount() const override { return 1; }
  c10::Allocator* getPinnedMemoryAllocator() const override { return c10::GetCPUAllocator(); }
  bool isPinnedPtr(const void*) const override { return false; }
};

// The same memory, as a tensor of the CPU.
at::Tensor on_cpu(const at::Tensor& tensor) {
  if (!tensor.defined() || tensor.device().type() != kType) return tensor;
  const auto options = tensor.options().device(at::kCPU);
  // An empty one has no memory to share, and an operation may want to make it larger.
  if (tensor.numel() == 0) return at::empty_strided(tensor.sizes(), tensor.strides(), options);
  return at::for_blob(tensor.mutable_data_ptr(), tensor.sizes())
      .strides(tensor.strides())
      .deleter([keep = tensor](void*) {})
      .options(options)
      .make_tensor();
}

bool has_float64 = true;

at::ScalarType known(std::optional<at::ScalarType> dtype) {
  const auto type = c10::dtype_or_default(dtype);
  TORCH_CHECK_TYPE(has_float64 || type != at::kDouble, "this device has no float64");
  return type;
}

at::Tensor empty_strided(IntArrayRef sizes, IntArrayRef strides, std::optional<at::ScalarType> dtype,
                         std::optional<at::Layout>, std::optional<at::Device>,
                         std::optional<bool>) {
  return at::detail::empty_strided_generic(sizes, strides, &allocator,
                                           c10::DispatchKeySet(c10::DispatchKey::PrivateUse1),
                                           known(dtype));
}

at::Tensor empty(IntArrayRef sizes, std::optional<at::ScalarType> dtype, std::optional<at::Layout>,
                 std::optional<at::Device>, std::optional<bool>,
                 std::optional<at::MemoryFormat> format) {
  return at::detail::empty_generic(sizes, &allocator,
                                   c10::DispatchKeySet(c10::DispatchKey::PrivateUse1),
                                   known(dtype), format);
}

at::Tensor on_device(const at::Tensor& tensor) {
  if (!tensor.defined()) return tensor;
  auto copy = empty_strided(tensor.sizes(), tensor.strides(), tensor.scalar_type(), {}, {}, {});
  on_cpu(copy).copy_(tensor);
  return copy;
}

// Operations that look at the memory, or move it.

at::Tensor copy_from(const at::Tensor& self, const at::Tensor& to, bool) {
  on_cpu(to).copy_(on_cpu(self));
  return to;
}

at::Tensor copy_from_and_resize(const at::Tensor& self, const at::Tensor& to) {
  to.resize_(self.sizes());
  return copy_from(self, to, false);
}

at::Scalar item(const at::Tensor& self) { return on_cpu(self).item(); }

at::Tensor as_strided(const at::Tensor& self, IntArrayRef sizes, IntArrayRef strides,
                      std::optional<int64_t> offset) {
  return at::cpu::as_strided(self, sizes, strides, offset);
}

at::Tensor reshape_alias(const at::Tensor& self, IntArrayRef sizes, IntArrayRef strides) {
  return at::cpu::as_strided(self, sizes, strides, std::nullopt);
}

const at::Tensor& resize(const at::Tensor& self, SymIntArrayRef sizes,
                         std::optional<at::MemoryFormat> format) {
  return at::native::resize_(self, C10_AS_INTARRAYREF_SLOW(sizes), format);
}

at::Tensor& set_storage(at::Tensor& self, at::Storage storage, int64_t offset, IntArrayRef sizes,
                        IntArrayRef strides) {
  return at::native::set_storage_cpu_(self, std::move(storage), offset, sizes, strides);
}

at::Tensor& set_whole_storage(at::Tensor& self, at::Storage storage) {
  const int64_t size = storage.nbytes() / self.dtype().itemsize();
  return set_storage(self, std::move(storage), 0, {size}, {1});
}

// torch leaves these to the device under names of their own.

at::Tensor convolution(const at::Tensor& input, const at::Tensor& weight,
                       const std::optional<at::Tensor>& bias, SymIntArrayRef stride,
                       SymIntArrayRef padding, SymIntArrayRef dilation, bool transposed,
                       SymIntArrayRef output_padding, c10::SymInt groups) {
  TORCH_CHECK(input.device() == weight.device(), "convolution has tensors of two devices");
  std::optional<at::Tensor> shift;
  if (bias && bias->defined()) shift = on_cpu(*bias);
  return on_device(at::convolution_symint(on_cpu(input), on_cpu(weight), shift, stride, padding,
                                          dilation, transposed, output_padding, groups));
}

std::tuple<at::Tensor, at::Tensor, at::Tensor> convolution_backward(
    const at::Tensor& gradient, const at::Tensor& input, const at::Tensor& weight,
    SymIntArrayRef stride, SymIntArrayRef padding, SymIntArrayRef dilation, bool transposed,
    SymIntArrayRef output_padding, c10::SymInt groups, std::array<bool, 3> mask) {
  const auto channels = weight.sym_size(0);
  const auto [of_input, of_weight, of_bias] = at::convolution_backward_symint(
      on_cpu(gradient), on_cpu(input), on_cpu(weight), SymIntArrayRef(channels), stride, padding,
      dilation, transposed, output_padding, groups, mask);
  return {on_device(of_input), on_device(of_weight), on_device(of_bias)};
}

// Everything else runs on the CPU, over the same memory.

class Call {
 public:
  Call(const c10::OperatorHandle& op, torch::jit::Stack* stack)
      : schema_(op.schema()), op_(op), stack_(stack) {}

  void run() {
    const auto first = stack_->size() - schema_.arguments().size();
    for (size_t i = 0; i < schema_.arguments().size(); i++) {
      name_ = schema_.arguments()[i].name();
      (*stack_)[first + i] = argument((*stack_)[first + i]);
    }
    TORCH_CHECK(host_.empty() || pairs_.empty(), schema_.name(), " has tensors of two devices: ",
                host_, " is on the CPU");
    op_.callBoxed(stack_);
    const auto result = stack_->size() - schema_.returns().size();
    for (size_t i = result; i < stack_->size(); i++) (*stack_)[i] = returned((*stack_)[i]);
  }

 private:
  c10::IValue argument(const c10::IValue& value) {
    if (value.isTensor()) return taken(value.toTensor());
    if (value.isDevice()) return c10::Device(at::kCPU);
    if (value.isTensorList()) {
      c10::List<at::Tensor> list;
      for (const at::Tensor& tensor : value.toTensorVector()) list.push_back(taken(tensor));
      return list;
    }
    if (value.isOptionalTensorList()) {
      c10::List<std::optional<at::Tensor>> list;
      for (const std::optional<at::Tensor>& tensor : value.toOptionalTensorVector())
        list.push_back(tensor ? std::make_optional(taken(*tensor)) : std::nullopt);
      return list;
    }
    return value;
  }

  at::Tensor taken(const at::Tensor& tensor) {
    if (!tensor.defined()) return tensor;
    if (tensor.device().type() != kType) {
      // CUDA too takes numbers, and the indices of rows, from the host.
      if (tensor.dim() > 0 && name_ != "indices") host_ = name_;
      return tensor;
    }
    pairs_.emplace_back(tensor, on_cpu(tensor));
    return pairs_.back().second;
  }

  c10::IValue returned(const c10::IValue& value) {
    if (value.isTensor()) return given(value.toTensor());
    if (!value.isTensorList()) return value;
    c10::List<at::Tensor> list;
    for (const at::Tensor& tensor : value.toTensorVector()) list.push_back(given(tensor));
    return list;
  }

  at::Tensor given(const at::Tensor& tensor) {
    if (!tensor.defined()) return tensor;
    for (auto& [device, cpu] : pairs_) {
      if (cpu.is_same(tensor)) {
        if (device.sizes() != tensor.sizes()) device.resize_(tensor.sizes());
        if (device.data_ptr() != tensor.data_ptr()) on_cpu(device).copy_(tensor);
        return device;
      }
      TORCH_CHECK(!tensor.numel() || !cpu.numel() || !tensor.is_alias_of(cpu), schema_.name(),
                  " returns a view, which this device does not know");
    }
    return on_device(tensor);
  }

  const c10::FunctionSchema& schema_;
  const c10::OperatorHandle& op_;
  torch::jit::Stack* stack_;
  std::vector<std::pair<at::Tensor, at::Tensor>> pairs_;
  std::string name_, host_;
};

void fallback(const c10::OperatorHandle& op, torch::jit::Stack* stack) { Call(op, stack).run(); }

TORCH_LIBRARY_IMPL(aten, PrivateUse1, m) {
  m.impl("empty.memory_format", &empty);
  m.impl("empty_strided", &empty_strided);
  m.impl("_copy_from", &copy_from);
  m.impl("_copy_from_and_resize", &copy_from_and_resize);
  m.impl("_local_scalar_dense", &item);
  m.impl("as_strided", &as_strided);
  m.impl("_reshape_alias", &reshape_alias);
  m.impl("view", static_cast<at::Tensor (*)(const at::Tensor&, IntArrayRef)>(&at::native::view));
  m.impl("unfold", &at::native::unfold);
  m.impl("resize_", &resize);
  m.impl("set_.source_Storage", &set_whole_storage);
  m.impl("set_.source_Storage_storage_offset", &set_storage);
  m.impl("convolution_overrideable", &convolution);
  m.impl("convolution_backward_overrideable", &convolution_backward);
}
TORCH_LIBRARY_IMPL(_, PrivateUse1, m) {
  m.fallback(torch::CppFunction::makeFromBoxedFunction<&fallback>());
}
// Autocast has no effect.
TORCH_LIBRARY_IMPL(_, AutocastPrivateUse1, m) { m.fallback(torch::CppFunction::makeFallthrough()); }

}  // namespace

PYBIND11_MODULE(TORCH_EXTENSION_NAME, m) {
  m.def("refuse_float64", [] { has_float64 = false; });
  m.def("register_hooks", [] { at::RegisterPrivateUse1HooksInterface(new Hooks()); });
}
