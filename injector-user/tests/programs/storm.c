/*
 * Makes short processes of itself, so many a second for so many seconds, and prints what became of them.
 * Each compares its clock with the kernel's: it is skewed, or it is true.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <spawn.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

enum { SKEWED = 10, TRUE_TIME = 11, MOST = 200 };

static int child(void) {
    struct timespec read, kernel;
    clock_gettime(CLOCK_REALTIME, &read);
    syscall(SYS_clock_gettime, CLOCK_REALTIME, &kernel);
    return labs(read.tv_sec - kernel.tv_sec) > 1800 ? SKEWED : TRUE_TIME;
}

static double now(void) {
    struct timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return time.tv_sec + time.tv_nsec / 1e9;
}

int main(int count, char **arguments) {
    if (count != 3)
        return child();
    double rate = atof(arguments[1]), seconds = atof(arguments[2]);
    char *command[] = {arguments[0], NULL};
    long made = 0, running = 0, skewed = 0, truthful = 0, failed = 0, stopped = 0;
    double start = now(), end = 0;
    for (;;) {
        int is_over = now() - start >= seconds;
        if (is_over && end == 0)
            end = now();
        if (is_over && running == 0)
            break;
        int status, is_late = made < (now() - start) * rate;
        /* A stop is told of, too: that is what a parent sees of a program that is held. */
        pid_t pid = waitpid(-1, &status, WUNTRACED | (is_over || running == MOST ? 0 : WNOHANG));
        if (pid > 0 && WIFSTOPPED(status)) {
            stopped++;
        } else if (pid > 0) {
            running--;
            if (WIFEXITED(status) && WEXITSTATUS(status) == SKEWED)
                skewed++;
            else if (WIFEXITED(status) && WEXITSTATUS(status) == TRUE_TIME)
                truthful++;
            else
                failed++;
        } else if (!is_over && is_late && running < MOST) {
            if (posix_spawn(&pid, "/proc/self/exe", NULL, NULL, command, NULL) != 0)
                return 1;
            made++;
            running++;
        } else if (!is_over) {
            usleep(200);
        }
    }
    printf("{\"event\":\"end\",\"made\":%ld,\"skewed\":%ld,\"true\":%ld,\"failed\":%ld,\"stops\":%ld,\"rate\":%.0f}\n",
           made, skewed, truthful, failed, stopped, made / (end - start));
    return 0;
}
