/*
 * Stands between a node and the C library, and does what a control file says: fails or delays writes to files of the
 * node's data directory, shifts its wall clock. For tests only: compiled by them, loaded with LD_PRELOAD.
 *
 * FAULTS_CONTROL names the control file, which is read again whenever it may matter. One rule a line:
 *
 *   write NAME ERRNO     writes to files whose names begin with NAME fail with this errno
 *   sync NAME ERRNO      the same for fsync and fdatasync
 *   delay NAME MS        fsync and fdatasync of such files take so much longer, for as long as the rule stands
 *   clock MS             CLOCK_REALTIME is so much ahead (or behind); monotonic clocks are left alone
 *
 * A NAME that begins with '=' is the whole name, one that begins with '*' its end. FAULTS_SOURCE is an address of this host: connections to 127.0.0.1
 * are made from there, so that a proxy knows who calls.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <sys/uio.h>
#include <time.h>
#include <unistd.h>

#define RULES_MAX 4096
/* How long a clock rule may be out of date: clocks are read too often to read a file each time. */
#define CLOCK_RULE_MS 5

/* The control file as it is now; empty when there is none. */
static void read_rules(char *rules) {
    rules[0] = 0;
    const char *path = getenv("FAULTS_CONTROL");
    if (!path) return;
    int fd = (int)syscall(SYS_openat, AT_FDCWD, path, O_RDONLY | O_CLOEXEC);
    if (fd < 0) return;
    ssize_t count = syscall(SYS_read, fd, rules, RULES_MAX - 1);
    rules[count > 0 ? count : 0] = 0;
    syscall(SYS_close, fd);
}

/* The value of the rule of this kind for the file `fd`; 0 when there is none. */
static long rule_for(const char *kind, int fd) {
    char rules[RULES_MAX], link[64], path[4096];
    read_rules(rules);
    if (!rules[0]) return 0;
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    ssize_t length = readlink(link, path, sizeof path - 1);
    if (length <= 0 || path[0] != '/') return 0;
    path[length] = 0;
    const char *file = strrchr(path, '/') + 1;
    char *rest = NULL;
    for (char *line = strtok_r(rules, "\n", &rest); line; line = strtok_r(NULL, "\n", &rest)) {
        char rule[16], name[256];
        long value;
        if (sscanf(line, "%15s %255s %ld", rule, name, &value) != 3 || strcmp(rule, kind)) continue;
        size_t had = strlen(file), asked = strlen(name);
        int matches = name[0] == '=' ? !strcmp(file, name + 1)
                    : name[0] == '*' ? had >= asked - 1 && !strcmp(file + had - (asked - 1), name + 1)
                                     : !strncmp(file, name, asked);
        if (matches) return value;
    }
    return 0;
}

static int refused(const char *kind, int fd) {
    int kept = errno;
    long code = rule_for(kind, fd);
    errno = code ? (int)code : kept;
    return code != 0;
}

static long monotonic_ms(void) {
    struct timespec now;
    syscall(SYS_clock_gettime, CLOCK_MONOTONIC, &now);
    return now.tv_sec * 1000 + now.tv_nsec / 1000000;
}

static void delayed(int fd) {
    int kept = errno;
    long start = monotonic_ms();
    while (monotonic_ms() - start < rule_for("delay", fd)) {
        struct timespec pause = {0, 10 * 1000 * 1000};
        syscall(SYS_nanosleep, &pause, NULL);
    }
    errno = kept;
}

#define NEXT(name) ((__typeof__(&name))dlsym(RTLD_NEXT, #name))

ssize_t write(int fd, const void *bytes, size_t count) {
    if (fd > 2 && refused("write", fd)) return -1;
    return syscall(SYS_write, fd, bytes, count);
}

ssize_t pwrite(int fd, const void *bytes, size_t count, off_t at) {
    if (refused("write", fd)) return -1;
    return syscall(SYS_pwrite64, fd, bytes, count, at);
}

ssize_t pwrite64(int fd, const void *bytes, size_t count, off64_t at) {
    if (refused("write", fd)) return -1;
    return syscall(SYS_pwrite64, fd, bytes, count, at);
}

int fsync(int fd) {
    delayed(fd);
    if (refused("sync", fd)) return -1;
    return (int)syscall(SYS_fsync, fd);
}

int fdatasync(int fd) {
    delayed(fd);
    if (refused("sync", fd)) return -1;
    return (int)syscall(SYS_fdatasync, fd);
}

/* What the clock rule says, read lately. */
static long clock_offset_ms(void) {
    static _Atomic long read_at = -CLOCK_RULE_MS, offset = 0;
    long now = monotonic_ms(), before = atomic_load(&read_at);
    if (now - before >= CLOCK_RULE_MS && atomic_compare_exchange_strong(&read_at, &before, now)) {
        int kept = errno;
        char rules[RULES_MAX], *line;
        read_rules(rules);
        line = strstr(rules, "clock ");
        atomic_store(&offset, line ? atol(line + 6) : 0);
        errno = kept;
    }
    return atomic_load(&offset);
}

int clock_gettime(clockid_t clock, struct timespec *out) {
    static _Atomic(__typeof__(&clock_gettime)) next;
    if (!next) next = NEXT(clock_gettime);
    int result = next(clock, out);
    if (result == 0 && (clock == CLOCK_REALTIME || clock == CLOCK_REALTIME_COARSE)) {
        long ms = clock_offset_ms();
        out->tv_sec += ms / 1000;
        out->tv_nsec += ms % 1000 * 1000000;
        if (out->tv_nsec >= 1000000000) out->tv_sec++, out->tv_nsec -= 1000000000;
        if (out->tv_nsec < 0) out->tv_sec--, out->tv_nsec += 1000000000;
    }
    return result;
}

int gettimeofday(struct timeval *restrict out, void *restrict zone) {
    (void)zone;
    struct timespec now;
    clock_gettime(CLOCK_REALTIME, &now);
    out->tv_sec = now.tv_sec;
    out->tv_usec = now.tv_nsec / 1000;
    return 0;
}

time_t time(time_t *out) {
    struct timespec now;
    clock_gettime(CLOCK_REALTIME, &now);
    if (out) *out = now.tv_sec;
    return now.tv_sec;
}

int connect(int fd, const struct sockaddr *to, socklen_t length) {
    static _Atomic(__typeof__(&connect)) next;
    if (!next) next = NEXT(connect);
    const char *source = getenv("FAULTS_SOURCE");
    const struct sockaddr_in *in = (const struct sockaddr_in *)to;
    if (source && to->sa_family == AF_INET && in->sin_addr.s_addr == htonl(INADDR_LOOPBACK)) {
        struct sockaddr_in from = {.sin_family = AF_INET};
        int on = 1;
        inet_pton(AF_INET, source, &from.sin_addr);
        /* The port is chosen with the connection: by itself it would be one that nobody else may use. */
        setsockopt(fd, IPPROTO_IP, IP_BIND_ADDRESS_NO_PORT, &on, sizeof on);
        if (bind(fd, (struct sockaddr *)&from, sizeof from) != 0) return -1;
    }
    return next(fd, to, length);
}
