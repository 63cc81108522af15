/*
 * Plays an MTA to a filter, as fast as the filter answers: packets that were encoded before, plain sockets.
 *
 *   filter_driver HOST PORT SESSIONS SECONDS KEEP SCRIPT
 *     SESSIONS  how many at once, each in a thread of its own
 *     SECONDS   how long; no message begins later
 *     KEEP      1: each thread has one connection for all its messages, 0: one for each message
 *     SCRIPT    what is sent, see filter_script.py
 *
 * Prints: messages, seconds until the last of them was answered, seconds of CPU that this program took.
 * Every reply must be CONTINUE (or ACCEPT, at the end of a message; or the answer to the options).
 */
#include <arpa/inet.h>
#include <errno.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <pthread.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

enum { MAX_SESSIONS = 64, MAX_REPLY = 4096, TIMEOUT = 30, CHUNK = 1 << 20 };

struct step {
    const unsigned char *data;
    uint32_t size;
    unsigned char answers[4];
};

struct part {
    struct step *steps;
    uint32_t count;
};

static struct part opening, message, closing;
static struct sockaddr_in address;
static double deadline;
static int keep;
static long done[MAX_SESSIONS];

static void fail(const char *what)
{
    fprintf(stderr, "filter_driver: %s: %s\n", what, errno ? strerror(errno) : "the filter closed the connection");
    exit(1);
}

static double now(void)
{
    struct timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return time.tv_sec + time.tv_nsec / 1e9;
}

static int dial(void)
{
    struct timeval timeout = {TIMEOUT, 0};
    int one = 1, fd = socket(AF_INET, SOCK_STREAM, 0);
    if (fd < 0 || connect(fd, (struct sockaddr *)&address, sizeof address))
        fail("connect");
    setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
    setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &timeout, sizeof timeout);
    return fd;
}

static void read_reply(int fd, const struct step *step)
{
    unsigned char reply[MAX_REPLY];
    size_t have = 0, wanted = 5;
    while (have < wanted) {
        ssize_t got = recv(fd, reply + have, sizeof reply - have, 0);
        if (got <= 0) {
            errno = got ? errno : 0;
            fail("recv");
        }
        have += got;
        if (have >= 4) {
            wanted = 4 + ((size_t)reply[0] << 24 | reply[1] << 16 | reply[2] << 8 | reply[3]);
            if (wanted < 5 || wanted > sizeof reply) {
                fprintf(stderr, "filter_driver: a reply of %zu bytes\n", wanted);
                exit(1);
            }
        }
    }
    if (have > wanted || !memchr(step->answers, reply[4], strlen((const char *)step->answers))) {
        fprintf(stderr, "filter_driver: reply %c to a packet that begins with %c, %zu bytes of it\n", reply[4],
                step->data[4], have);
        exit(1);
    }
}

static void play(int fd, const struct part *part)
{
    for (uint32_t n = 0; n < part->count; n++) {
        const struct step *step = part->steps + n;
        for (uint32_t sent = 0; sent < step->size;) {
            ssize_t wrote = send(fd, step->data + sent, step->size - sent, MSG_NOSIGNAL);
            if (wrote < 0)
                fail("send");
            sent += wrote;
        }
        if (step->answers[0])
            read_reply(fd, step);
    }
}

static void *serve(void *number)
{
    long *count = number;
    int fd = -1;
    while (now() < deadline) {
        if (fd < 0) {
            fd = dial();
            play(fd, &opening);
        }
        play(fd, &message);
        ++*count;
        if (!keep) {
            play(fd, &closing);
            close(fd);
            fd = -1;
        }
    }
    if (fd >= 0) {
        play(fd, &closing);
        close(fd);
    }
    return NULL;
}

static uint32_t number_at(const unsigned char **at)
{
    uint32_t number;
    memcpy(&number, *at, 4);
    *at += 4;
    return ntohl(number);
}

static struct part part_at(const unsigned char **at)
{
    struct part part = {NULL, number_at(at)};
    part.steps = calloc(part.count, sizeof *part.steps);
    for (uint32_t n = 0; n < part.count; n++) {
        struct step *step = part.steps + n;
        memcpy(step->answers, *at, 3);
        *at += 4;
        step->size = number_at(at);
        step->data = *at;
        *at += step->size;
    }
    return part;
}

static const unsigned char *contents(const char *path)
{
    size_t size = 0;
    unsigned char *data = NULL;
    FILE *file = fopen(path, "rb");
    if (!file)
        fail(path);
    for (size_t got = 1; got; size += got) {
        data = realloc(data, size + CHUNK);
        got = fread(data + size, 1, CHUNK, file);
    }
    fclose(file);
    return data;
}

int main(int argc, char **argv)
{
    if (argc != 7 || atoi(argv[3]) < 1 || atoi(argv[3]) > MAX_SESSIONS) {
        fprintf(stderr, "usage: filter_driver HOST PORT SESSIONS SECONDS KEEP SCRIPT\n");
        return 2;
    }
    int sessions = atoi(argv[3]);
    const unsigned char *at = contents(argv[6]);
    opening = part_at(&at), message = part_at(&at), closing = part_at(&at);
    address.sin_family = AF_INET;
    address.sin_port = htons(atoi(argv[2]));
    inet_pton(AF_INET, argv[1], &address.sin_addr);
    keep = atoi(argv[5]);

    pthread_t threads[MAX_SESSIONS];
    double began = now();
    deadline = began + atof(argv[4]);
    for (int n = 0; n < sessions; n++)
        if (pthread_create(&threads[n], NULL, serve, &done[n]))
            fail("pthread_create");
    long messages = 0;
    for (int n = 0; n < sessions; n++) {
        pthread_join(threads[n], NULL);
        messages += done[n];
    }
    double took = now() - began;
    struct rusage usage;
    getrusage(RUSAGE_SELF, &usage);
    double cpu = usage.ru_utime.tv_sec + usage.ru_stime.tv_sec + (usage.ru_utime.tv_usec + usage.ru_stime.tv_usec) / 1e6;
    printf("%ld %.6f %.6f\n", messages, took, cpu);
    return 0;
}
