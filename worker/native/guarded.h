// What all of the shim shares: errors as text, which the caller frees.

#pragma once

#include <cstring>
#include <exception>
#include <string>

#include <c10/util/Exception.h>

inline char *text(const std::string &value) { return strdup(value.c_str()); }

// Runs `body`, and gives `nothing` and the error's text where it throws.
template <class Body> auto guarded(char **error, Body body) -> decltype(body()) {
  try {
    return body();
  } catch (const c10::Error &thrown) {
    *error = text(thrown.what());
  } catch (const std::exception &thrown) {
    *error = text(thrown.what());
  } catch (...) {
    *error = text("libtorch threw something unknown");
  }
  return decltype(body())();
}
