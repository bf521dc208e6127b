// Random weights that are the same everywhere.
//
// Uniform numbers from xoshiro256++, seeded from a number and a tensor's name,
// made into floats by one exact conversion and one multiplication: no libm, no
// std:: distribution, nothing that a compiler or a machine may do differently.
// Golden files depend on this sequence; changing it means regenerating them.
// Values; one generator belongs to one thread.
#pragma once

#include <array>
#include <cstdint>
#include <span>
#include <string_view>

namespace trims::models {

class Xoshiro256 final {
 public:
  Xoshiro256(uint64_t seed, std::string_view name) {
    uint64_t x = 0xcbf29ce484222325u;  // FNV-1a of the name, so that tensors differ.
    for (const char c : name) x = (x ^ static_cast<unsigned char>(c)) * 0x100000001b3u;
    x ^= seed * 0x9e3779b97f4a7c15u;
    for (uint64_t& word : state_) {  // splitmix64, as xoshiro's authors ask.
      x += 0x9e3779b97f4a7c15u;
      uint64_t z = x;
      z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
      z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
      word = z ^ (z >> 31);
    }
  }

  uint64_t Next() {
    const uint64_t result = Rotate(state_[0] + state_[3], 23) + state_[0];
    const uint64_t t = state_[1] << 17;
    state_[2] ^= state_[0];
    state_[3] ^= state_[1];
    state_[1] ^= state_[2];
    state_[0] ^= state_[3];
    state_[2] ^= t;
    state_[3] = Rotate(state_[3], 45);
    return result;
  }

  // Fills `out` with numbers in [-limit, limit): two of 24 bits from each word.
  // An odd last element takes a word alone, so filling in pieces of even length
  // gives the same sequence as filling at once.
  void FillUniform(std::span<float> out, float limit) {
    const float step = limit / 8388608.0f;  // 2^23
    size_t i = 0;
    for (; i + 2 <= out.size(); i += 2) {
      const uint64_t word = Next();
      out[i] = Centre(word >> 40) * step;
      out[i + 1] = Centre((word >> 16) & 0xffffff) * step;
    }
    if (i < out.size()) out[i] = Centre(Next() >> 40) * step;
  }

 private:
  static uint64_t Rotate(uint64_t x, int k) { return (x << k) | (x >> (64 - k)); }
  static float Centre(uint64_t bits24) {
    return static_cast<float>(static_cast<int32_t>(bits24) - 0x800000);
  }

  std::array<uint64_t, 4> state_{};
};

}  // namespace trims::models
