#pragma once
#include <vector>

/// Returns the primes below `limit`.
std::vector<unsigned> sieve(unsigned limit);
