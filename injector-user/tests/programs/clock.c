/* Answers each line of standard input with nanoseconds: what it reads, a thread of its own, or a child. */
#include <pthread.h>
#include <stdio.h>
#include <string.h>
#include <sys/time.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

static long long read_clock(clockid_t clock) {
    struct timespec now;
    clock_gettime(clock, &now);
    return now.tv_sec * 1000000000LL + now.tv_nsec;
}

static long long microseconds(void) {
    struct timeval now;
    gettimeofday(&now, NULL);
    return now.tv_sec * 1000000000LL + now.tv_usec * 1000;
}

static void *by_thread(void *answer) {
    *(long long *)answer = read_clock(CLOCK_REALTIME);
    return NULL;
}

static long long by_child(void) {
    int ends[2];
    long long answer = -1;
    if (pipe(ends) != 0)
        return -1;
    if (fork() == 0) {
        answer = read_clock(CLOCK_REALTIME);
        _exit(write(ends[1], &answer, sizeof answer) != sizeof answer);
    }
    if (read(ends[0], &answer, sizeof answer) != sizeof answer)
        answer = -1;
    close(ends[0]);
    close(ends[1]);
    wait(NULL);
    return answer;
}

int main(void) {
    char line[32];
    while (fgets(line, sizeof line, stdin)) {
        long long answer = -1;
        line[strcspn(line, "\n")] = 0;
        if (strcmp(line, "here") == 0)
            answer = read_clock(CLOCK_REALTIME);
        else if (strcmp(line, "gettimeofday") == 0)
            answer = microseconds();
        else if (strcmp(line, "time") == 0)
            answer = time(NULL) * 1000000000LL;
        else if (strcmp(line, "steady") == 0)
            answer = read_clock(CLOCK_MONOTONIC);
        else if (strcmp(line, "child") == 0)
            answer = by_child();
        else if (strcmp(line, "thread") == 0) {
            pthread_t thread;
            pthread_create(&thread, NULL, by_thread, &answer);
            pthread_join(thread, NULL);
        }
        printf("%lld\n", answer);
        fflush(stdout);
    }
    return 0;
}
