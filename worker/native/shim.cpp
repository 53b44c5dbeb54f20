// What the engine needs of libtorch and torch-sys does not bind: what a module's `forward` takes and writes, constant devices, tensors of
// any layout made plain, what a model prints, and which operators its code may name. Every function catches what libtorch throws and hands
// its text out by `error`.

#include <set>
#include <sstream>
#include <string>
#include <string_view>
#include <vector>

#include <torch/csrc/jit/ir/alias_analysis.h>
#include <torch/csrc/jit/passes/inliner.h>
#include <torch/csrc/jit/runtime/operator.h>
#include <torch/csrc/jit/runtime/print_handler.h>
#include <torch/script.h>

#include "guarded.h"

namespace {

using torch::jit::AliasDb;
using torch::jit::Block;
using torch::jit::Graph;
using torch::jit::Module;
using torch::jit::Node;
using torch::jit::Value;

bool holds_text(const c10::TypePtr &type) {
  if (type->kind() == c10::TypeKind::StringType) {
    return true;
  }
  for (const auto &contained : type->containedTypes()) {
    if (holds_text(contained)) {
      return true;
    }
  }
  return false;
}

void each_node(Block *block, std::vector<Node *> &nodes) {
  for (Node *node : block->nodes()) {
    nodes.push_back(node);
    for (Block *inner : node->blocks()) {
      each_node(inner, nodes);
    }
    // What `torch.jit.fork` runs.
    if (node->hasAttribute(torch::jit::attr::Subgraph)) {
      each_node(node->g(torch::jit::attr::Subgraph)->block(), nodes);
    }
  }
}

// Inlines all calls, those of forked code as well. A copied graph shares its subgraphs with the one that it was copied from.
void inline_all(Graph &graph) {
  torch::jit::Inline(graph);
  std::vector<Node *> nodes;
  each_node(graph.block(), nodes);
  for (Node *node : nodes) {
    if (node->owningGraph() == &graph && node->hasAttribute(torch::jit::attr::Subgraph)) {
      const auto subgraph = node->g(torch::jit::attr::Subgraph)->copy();
      inline_all(*subgraph);
      node->g_(torch::jit::attr::Subgraph, subgraph);
    }
  }
}

// `lstm.h` for the attribute `h` of the submodule `lstm`; of what is no attribute of the module, only its own name.
std::string path_of(const Node *access) {
  std::string path = access->s(torch::jit::attr::name);
  const Node *owner = access->input(0)->node();
  while (owner->kind() == torch::jit::prim::GetAttr) {
    path = owner->s(torch::jit::attr::name) + "." + path;
    owner = owner->input(0)->node();
  }
  return path;
}

bool holds_tensors(const c10::TypePtr &type) {
  if (type->kind() == c10::TypeKind::TensorType) {
    return true;
  }
  for (const auto &contained : type->containedTypes()) {
    if (holds_tensors(contained)) {
      return true;
    }
  }
  return false;
}

// What nodes write to, by their schemas.
std::vector<Value *> written(const std::vector<Node *> &nodes) {
  std::vector<Value *> values;
  for (Node *node : nodes) {
    const auto *schema = node->maybeSchema();
    if (!schema) {
      continue;
    }
    const auto &arguments = schema->arguments();
    for (size_t at = 0; at < arguments.size() && at < node->inputs().size(); at++) {
      if (arguments[at].alias_info() && arguments[at].alias_info()->isWrite()) {
        values.push_back(node->input(at));
      }
    }
  }
  return values;
}

// Attributes that `forward` sets or writes into, whether or not a run comes to it. As libtorch's own freezing finds them, and in doubt yes.
std::set<std::string> writes(const std::vector<Node *> &nodes, const std::shared_ptr<Graph> &graph) {
  std::set<std::string> found;
  AliasDb aliases(graph, /*isFrozen=*/true);
  const auto targets = written(nodes);
  for (Node *node : nodes) {
    const auto kind = node->kind();
    if (kind == torch::jit::prim::SetAttr) {
      // The fields of an object that this very call makes.
      if (node->input(0)->node()->kind() != torch::jit::prim::CreateObject) {
        found.insert(path_of(node));
      }
    } else if (kind == torch::jit::prim::GetAttr) {
      bool hit = aliases.hasOutputWriters(node);
      const auto &type = node->output()->type();
      if (!hit && type->kind() != c10::TypeKind::TensorType && type->kind() != c10::TypeKind::ClassType && holds_tensors(type)) {
        for (Value *target : targets) {
          hit = hit || aliases.mayContainAlias(node->output(), target);
        }
      }
      if (hit) {
        found.insert(path_of(node));
      }
    } else if (kind == torch::jit::prim::Constant && node->outputs().size() == 1 && holds_tensors(node->output()->type())) {
      if (aliases.hasOutputWriters(node)) {
        found.insert("a constant");
      }
    }
  }
  return found;
}

// Puts `device` where the code of a module names a GPU.
void move_constants(Block *block, c10::Device device) {
  std::vector<Node *> nodes;
  each_node(block, nodes);
  for (Node *node : nodes) {
    if (node->kind() != torch::jit::prim::Constant || node->outputs().size() != 1 ||
        node->output()->type()->kind() != c10::TypeKind::DeviceObjType || !node->hasAttribute(torch::jit::attr::value)) {
      continue;
    }
    const auto value = torch::jit::toIValue(node->output());
    if (value && value->isDevice() && value->toDevice().is_cuda()) {
      node->s_(torch::jit::attr::value, device.str());
    }
  }
}

void (*printed)(const char *) = nullptr;

struct Warnings : c10::WarningHandler {
  void process(const c10::Warning &warning) override {
    if (printed) {
      printed(warning.msg().c_str());
    }
  }
};

// The same values one after the other, on the tensor's own device.
at::Tensor plain(at::Tensor tensor) {
  TORCH_CHECK(tensor.defined(), "it is undefined");
  TORCH_CHECK(!tensor.is_meta(), "it is on the meta device, where tensors have no values");
  TORCH_CHECK(!tensor.is_nested(), "it is nested, of rows of different sizes: return `torch.nested.to_padded_tensor(it, 0.0)`");
  if (tensor.is_quantized()) {
    tensor = tensor.dequantize();
  }
  if (tensor.layout() != at::kStrided) {
    tensor = tensor.to_dense();
  }
  tensor = tensor.resolve_conj().resolve_neg().contiguous();
  return tensor._is_zerotensor() ? tensor.clone(at::MemoryFormat::Contiguous) : tensor;
}

} // namespace

extern "C" {

// Of `forward`, one line each, its fields separated by tabs: `argument NAME TYPE` with `default` behind it if it has one, `writes PATH`,
// and `random` if it draws numbers.
char *sluice_inspect(void *module, char **error) {
  return guarded(error, [&]() -> char * {
    const auto method = static_cast<Module *>(module)->get_method("forward");
    std::string lines;
    const auto &arguments = method.function().getSchema().arguments();
    // The first is the module itself.
    for (size_t at = 1; at < arguments.size(); at++) {
      const auto &argument = arguments[at];
      lines += "argument\t" + argument.name() + "\t" + argument.type()->repr_str() + (argument.default_value() ? "\tdefault\n" : "\n");
    }
    const auto graph = method.graph()->copy();
    inline_all(*graph);
    std::vector<Node *> nodes;
    each_node(graph->block(), nodes);
    for (const auto &path : writes(nodes, graph)) {
      lines += "writes\t" + path + "\n";
    }
    for (const Node *node : nodes) {
      if (node->isNondeterministic()) {
        lines += "random\n";
        break;
      }
    }
    return text(lines);
  });
}

// Lets code that names a GPU run on `gpu`, or on the CPU if that is negative. To be called before anything runs.
void sluice_move_constants(void *module, int gpu, char **error) {
  guarded(error, [&]() -> int {
    const auto device = gpu < 0 ? c10::Device(c10::kCPU) : c10::Device(c10::kCUDA, static_cast<c10::DeviceIndex>(gpu));
    for (auto *function : static_cast<Module *>(module)->_ivalue()->compilation_unit()->get_functions()) {
      if (auto *graph = torch::jit::tryToGraphFunction(*function)) {
        move_constants(graph->graph()->block(), device);
      }
    }
    return 0;
  });
}

// The value of `forward`'s argument `at`, the module itself not counted, where it is not given.
void *sluice_default(void *module, size_t at, char **error) {
  return guarded(error, [&]() -> void * {
    const auto method = static_cast<Module *>(module)->get_method("forward");
    return new c10::IValue(method.function().getSchema().arguments().at(at + 1).default_value().value());
  });
}

// The module's buffers, one line each: its path, a tab, and what its bytes hash to.
char *sluice_buffers(void *module, char **error) {
  return guarded(error, [&]() -> char * {
    std::string lines;
    for (const auto &buffer : static_cast<Module *>(module)->named_buffers()) {
      if (!buffer.value.defined() || buffer.value.is_meta() || buffer.value.is_nested()) {
        continue;
      }
      const auto tensor = plain(buffer.value).to(at::kCPU);
      const std::string_view bytes(static_cast<const char *>(tensor.const_data_ptr()), tensor.nbytes());
      lines += buffer.name + "\t" + std::to_string(std::hash<std::string_view>{}(bytes)) + "\n";
    }
    return text(lines);
  });
}

// The same values on the CPU, one after the other: of any stride, layout, device or quantisation. With `copy` in memory of its own. What
// comes from a GPU is there once `sluice_wait_for` has returned.
void *sluice_plain(void *tensor, bool copy, char **error) {
  return guarded(error, [&]() -> void * {
    const auto made = plain(*static_cast<at::Tensor *>(tensor));
    if (!made.device().is_cpu()) {
      return new at::Tensor(made.to(at::kCPU, /*non_blocking=*/true));
    }
    return new at::Tensor(copy ? made.clone(at::MemoryFormat::Contiguous) : made);
  });
}

// What models print goes to `handler`, on the thread that runs them.
void sluice_on_print(void (*handler)(const char *)) {
  printed = handler;
  torch::jit::setPrintHandler([](const std::string &line) { printed(line.c_str()); });
}

// What they warn of on this thread goes there too.
void sluice_on_warning() {
  static Warnings warnings;
  c10::WarningUtils::set_warning_handler(&warnings);
}

// The operators that models' code may name, one line each: its name, and behind a tab `text` if it takes some. A name may stand there more
// than once.
char *sluice_operators(char **error) {
  return guarded(error, [&]() -> char * {
    std::string lines;
    for (const auto &one : torch::jit::getAllOperators()) {
      const auto &schema = one->schema();
      bool takes_text = false;
      for (const auto &argument : schema.arguments()) {
        takes_text = takes_text || holds_text(argument.type());
      }
      lines += schema.name() + (takes_text ? "\ttext\n" : "\n");
    }
    return text(lines);
  });
}

// Takes operators away from models' code, for all of this process: code that names one cannot be loaded. `names` has one in each line.
// libtorch's own code goes on using them.
void sluice_forget(const char *names, char **error) {
  guarded(error, [&]() -> int {
    std::set<std::string> forgotten;
    std::string name;
    for (std::istringstream lines{names}; std::getline(lines, name);) {
      forgotten.insert(name);
    }
    for (const auto &one : torch::jit::getAllOperators()) {
      if (forgotten.count(one->schema().name())) {
        torch::jit::deregisterOperator(one->schema());
      }
    }
    return 0;
  });
}
}
