// Which engines may be used: all, or those of one name or family.
#pragma once

#include <string>
#include <vector>

namespace unfoldconv {

// Makes every call of the process use an engine or a family if it can; "automatic" leaves the choice to the tables.
void force_engine(std::string name);

// Whether that is in effect.
bool is_engine_forced();

// The names of all engines of a device.
std::vector<const char*> engine_names(bool cuda);

// The engine that the calls of this thread use while it lives, unless one is forced. Null leaves the choice free.
class Trial {
 public:
  explicit Trial(const char* engine);
  ~Trial();
  Trial(const Trial&) = delete;
  Trial& operator=(const Trial&) = delete;

 private:
  const char* former_;
};

// Says in words that the choice fell on another engine or family, or null.
const char* excluded_by_choice(const char* engine, const char* family);

// Whether the choice fell on an engine of another family.
bool is_family_excluded(const char* family);

}  // namespace unfoldconv
