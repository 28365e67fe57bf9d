/* Loaded by LD_PRELOAD, moves the clock of a process by SKEW_SECONDS. Clocks that count from a start are left alone. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <stdlib.h>
#include <time.h>

int clock_gettime(clockid_t clock, struct timespec *now) {
    static int (*real)(clockid_t, struct timespec *);
    if (!real)
        real = (int (*)(clockid_t, struct timespec *))dlsym(RTLD_NEXT, "clock_gettime");
    int result = real(clock, now);
    const char *skew = getenv("SKEW_SECONDS");
    if (result == 0 && clock == CLOCK_REALTIME && skew)
        now->tv_sec += atol(skew);
    return result;
}
