// Gloo's own headers are not among libtorch's. This folder declares what
// c10d/ProcessGroupGloo.hpp names of them: types that it only points to, and the
// interface that a class of it, not used here, derives from. Nothing of Gloo is
// called or laid out by this project.
#pragma once

#include <chrono>
#include <string>
#include <vector>

namespace gloo {

class Context {
 public:
  void setTimeout(std::chrono::milliseconds); // of libtorch's own, from some version after 2.6 on
};

namespace transport {
class Device;
class UnboundBuffer;
} // namespace transport

namespace rendezvous {
class Store {
 public:
  virtual ~Store() = default;
  virtual void set(const std::string &, const std::vector<char> &) = 0;
  virtual std::vector<char> get(const std::string &) = 0;
  virtual void wait(const std::vector<std::string> &) = 0;
  virtual void wait(const std::vector<std::string> &, const std::chrono::milliseconds &) = 0;
};
} // namespace rendezvous

} // namespace gloo
