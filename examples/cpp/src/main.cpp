#include <fmt/ranges.h>

#include <cstdlib>

#include "sieve.hpp"

int main(int argc, char** argv) {
    unsigned limit = argc > 1 ? std::strtoul(argv[1], nullptr, 10) : 30;
    fmt::print("c++ program: {}\n", fmt::join(sieve(limit), " "));
}
