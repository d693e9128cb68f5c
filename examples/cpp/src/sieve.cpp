#include "sieve.hpp"

std::vector<unsigned> sieve(unsigned limit) {
    std::vector<bool> composite(limit);
    std::vector<unsigned> primes;
    for (unsigned n = 2; n < limit; ++n) {
        if (composite[n]) continue;
        primes.push_back(n);
        for (unsigned long multiple = 1ul * n * n; multiple < limit; multiple += n) composite[multiple] = true;
    }
    return primes;
}
