// Text: case, lists, quotes for messages, UTF-8. Letters and spaces are ASCII's,
// whatever the locale. What only one file needs is not here. Pure functions; any thread.
#pragma once

#include <cstddef>
#include <string>
#include <string_view>
#include <vector>

namespace trims {

std::string Lower(std::string_view text);
// Views into `text`.
std::string_view Trim(std::string_view text, std::string_view spaces = " \t");
// What stands between commas, without spaces around it; nothing for a blank text.
std::vector<std::string_view> SplitList(std::string_view text);
std::string Join(const std::vector<std::string>& parts, std::string_view separator);

// `text` in double quotes, as TOML writes a basic string: readable in messages
// and harmless in a terminal, whatever it holds. Where it is longer than
// `bytes_max` it is cut, between characters, and ends in "…".
std::string Quoted(std::string_view text, size_t bytes_max = std::string_view::npos);
// Messages show at most this much of what somebody wrote.
inline constexpr size_t kShownBytesMax = 80;
// "found "x", expected y": what messages about settings say of a value.
std::string Found(std::string_view text, std::string_view expected);

// The candidate that `text` most likely meant: the first of those that take the
// fewest edits (insert, delete, replace, swap of neighbours), at most
// `edits_max`. "" when none is near; texts over 64 bytes are near nothing.
std::string Nearest(std::string_view text, const std::vector<std::string>& candidates,
                    size_t edits_max);

// Overlong forms, surrogates and numbers over U+10FFFF are not valid.
bool IsValidUtf8(std::string_view text);
// `text` with every byte that is not part of valid UTF-8 replaced by U+FFFD. What
// names files, processes or tensors is not always UTF-8; protobuf strings must be.
std::string ToValidUtf8(std::string_view text);
// The longest beginning of `text`, at most `bytes_max`, that ends between characters.
std::string_view CutUtf8(std::string_view text, size_t bytes_max);

}  // namespace trims
