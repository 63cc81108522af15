/*
 * Plays an MTA to a filter, as fast as the filter answers: packets that were encoded before, plain sockets, one
 * thread.
 *
 *   filter_driver HOST PORT SESSIONS SECONDS KEEP SCRIPT
 *     SESSIONS  how many at once
 *     SECONDS   how long; no message begins later
 *     KEEP      1: each session has one connection for all its messages, 0: one for each message
 *     SCRIPT    what is sent, see filter_script.py
 *
 * Prints: messages, seconds until the last of them was answered, seconds of CPU that this program took.
 * Every reply must be CONTINUE (or ACCEPT, at the end of a message; or the answer to the options).
 */
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

enum { MAX_SESSIONS = 64, MAX_REPLY = 4096, TIMEOUT_MS = 30000, CHUNK = 1 << 20 };

struct step {
    const unsigned char *data;
    uint32_t size;
    unsigned char answers[4];
};

struct part {
    struct step *steps;
    uint32_t count;
};

struct session {
    int fd;
    const struct part *part;
    uint32_t number;
    uint32_t sent;
    size_t have;
    unsigned char reply[MAX_REPLY];
};

static struct part opening, message, closing;
static struct sockaddr_in address;
static struct session sessions[MAX_SESSIONS];
static double deadline;
static int keep, poller, running;
static long messages;

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

static void dial(struct session *session)
{
    struct epoll_event events = {.events = EPOLLIN | EPOLLOUT | EPOLLET, .data.ptr = session};
    int one = 1, fd = socket(AF_INET, SOCK_STREAM, 0);
    if (fd < 0 || connect(fd, (struct sockaddr *)&address, sizeof address))
        fail("connect");
    setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
    fcntl(fd, F_SETFL, O_NONBLOCK);
    memset(session, 0, offsetof(struct session, reply));
    session->fd = fd;
    session->part = &opening;
    if (epoll_ctl(poller, EPOLL_CTL_ADD, fd, &events))
        fail("epoll_ctl");
}

/* The session has come to the end of a part: what it does next; 0 when nothing. */
static int turn(struct session *session)
{
    if (session->part == &closing) {
        close(session->fd);
        if (now() >= deadline) {
            --running;
            return 0;
        }
        dial(session);
        return 1;
    }
    if (session->part == &message)
        ++messages;
    session->number = 0;
    session->part = session->part == &opening || (keep && now() < deadline) ? &message : &closing;
    return 1;
}

/* Sends what is left of a step; 0 when that has to wait. */
static int sent(struct session *session, const struct step *step)
{
    while (session->sent < step->size) {
        ssize_t wrote = send(session->fd, step->data + session->sent, step->size - session->sent, MSG_NOSIGNAL);
        if (wrote < 0) {
            if (errno == EAGAIN)
                return 0;
            fail("send");
        }
        session->sent += wrote;
    }
    return 1;
}

/* Reads the reply to a step; 0 when it is not there yet. */
static int answered(struct session *session, const struct step *step)
{
    unsigned char *reply = session->reply;
    for (;;) {
        size_t wanted = 5;
        if (session->have >= 4)
            wanted = 4 + ((size_t)reply[0] << 24 | reply[1] << 16 | reply[2] << 8 | reply[3]);
        if (wanted < 5 || wanted > MAX_REPLY || session->have > wanted) {
            fprintf(stderr, "filter_driver: a reply of %zu bytes, %zu came\n", wanted, session->have);
            exit(1);
        }
        if (session->have == wanted)
            break;
        ssize_t got = recv(session->fd, reply + session->have, MAX_REPLY - session->have, 0);
        if (got <= 0) {
            if (got < 0 && errno == EAGAIN)
                return 0;
            errno = got ? errno : 0;
            fail("recv");
        }
        session->have += got;
    }
    if (!memchr(step->answers, reply[4], strlen((const char *)step->answers))) {
        fprintf(stderr, "filter_driver: reply %c to a packet that begins with %c\n", reply[4], step->data[4]);
        exit(1);
    }
    return 1;
}

static void play(struct session *session)
{
    do {
        for (; session->number < session->part->count; session->number++) {
            const struct step *step = session->part->steps + session->number;
            int fresh = session->sent < step->size;
            if (!sent(session, step))
                return;
            if (step->answers[0] && (fresh || !answered(session, step)))
                return;
            session->sent = session->have = 0;
        }
    } while (turn(session));
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
    const unsigned char *at = contents(argv[6]);
    opening = part_at(&at), message = part_at(&at), closing = part_at(&at);
    address.sin_family = AF_INET;
    address.sin_port = htons(atoi(argv[2]));
    inet_pton(AF_INET, argv[1], &address.sin_addr);
    keep = atoi(argv[5]);
    running = atoi(argv[3]);
    poller = epoll_create1(0);

    double began = now();
    deadline = began + atof(argv[4]);
    for (int n = running; n--;)
        dial(&sessions[n]);
    while (running) {
        struct epoll_event events[MAX_SESSIONS];
        int count = epoll_wait(poller, events, MAX_SESSIONS, TIMEOUT_MS);
        if (!count)
            errno = ETIMEDOUT;
        if (count <= 0)
            fail("epoll_wait");
        for (int n = 0; n < count; n++)
            play(events[n].data.ptr);
    }
    double took = now() - began;
    struct rusage usage;
    getrusage(RUSAGE_SELF, &usage);
    double cpu = usage.ru_utime.tv_sec + usage.ru_stime.tv_sec;
    cpu += (usage.ru_utime.tv_usec + usage.ru_stime.tv_usec) / 1e6;
    printf("%ld %.6f %.6f\n", messages, took, cpu);
    return 0;
}
