/*
 * A filter that does nothing, through libmilter: what the benchmark chains, and what the chaos test kills.
 *
 *   noop_milter -p SOCKET [-s MS] [-m MS] [-n] [-a NAME]
 *     -p  where to listen, as libmilter spells it (inet:PORT@HOST or unix:/PATH)
 *     -s  sleep so many milliseconds at connect, MAIL and RCPT
 *     -m  sleep so many milliseconds at MAIL only
 *     -n  ask that no reply be awaited (NR_*) wherever the protocol has that
 *     -a  add a header of this name, with the queue id as its value, at the end of the message
 */
#include <libmilter/mfapi.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static useconds_t sleep_all, sleep_mail;
static int no_replies;
static char *header_name;

static sfsistat pause_for(useconds_t time)
{
    if (time)
        usleep(time);
    return SMFIS_CONTINUE;
}

static sfsistat on_connect(SMFICTX *ctx, char *host, _SOCK_ADDR *address)
{
    (void)ctx, (void)host, (void)address;
    return no_replies ? SMFIS_NOREPLY : pause_for(sleep_all);
}

static sfsistat on_helo(SMFICTX *ctx, char *name)
{
    (void)ctx, (void)name;
    return no_replies ? SMFIS_NOREPLY : SMFIS_CONTINUE;
}

static sfsistat on_mail(SMFICTX *ctx, char **argv)
{
    (void)ctx, (void)argv;
    return no_replies ? SMFIS_NOREPLY : pause_for(sleep_all + sleep_mail);
}

static sfsistat on_rcpt(SMFICTX *ctx, char **argv)
{
    (void)ctx, (void)argv;
    return no_replies ? SMFIS_NOREPLY : pause_for(sleep_all);
}

static sfsistat on_event(SMFICTX *ctx)
{
    (void)ctx;
    return no_replies ? SMFIS_NOREPLY : SMFIS_CONTINUE;
}

static sfsistat on_header(SMFICTX *ctx, char *name, char *value)
{
    (void)ctx, (void)name, (void)value;
    return no_replies ? SMFIS_NOREPLY : SMFIS_CONTINUE;
}

static sfsistat on_body(SMFICTX *ctx, unsigned char *chunk, size_t size)
{
    (void)ctx, (void)chunk, (void)size;
    return no_replies ? SMFIS_NOREPLY : SMFIS_CONTINUE;
}

static sfsistat on_end(SMFICTX *ctx)
{
    if (header_name) {
        char *id = smfi_getsymval(ctx, "i");
        if (smfi_addheader(ctx, header_name, id ? id : "none") != MI_SUCCESS)
            return SMFIS_TEMPFAIL;
    }
    return SMFIS_CONTINUE;
}

static sfsistat on_negotiate(SMFICTX *ctx, unsigned long actions, unsigned long steps, unsigned long f2,
    unsigned long f3, unsigned long *pf0, unsigned long *pf1, unsigned long *pf2, unsigned long *pf3)
{
    const unsigned long wanted = SMFIP_NR_CONN | SMFIP_NR_HELO | SMFIP_NR_MAIL | SMFIP_NR_RCPT | SMFIP_NR_DATA
        | SMFIP_NR_UNKN | SMFIP_NR_HDR | SMFIP_NR_EOH | SMFIP_NR_BODY;

    (void)ctx, (void)f2, (void)f3;
    *pf0 = actions & SMFIF_ADDHDRS;
    *pf1 = no_replies ? steps & wanted : 0;
    *pf2 = *pf3 = 0;
    if (no_replies && (steps & wanted) != wanted)
        return SMFIS_REJECT;
    return SMFIS_CONTINUE;
}

int main(int argc, char **argv)
{
    struct smfiDesc filter;
    char *socket_name = NULL;
    int option;

    while ((option = getopt(argc, argv, "p:s:m:na:")) != -1) {
        switch (option) {
        case 'p': socket_name = optarg; break;
        case 's': sleep_all = (useconds_t)atoi(optarg) * 1000; break;
        case 'm': sleep_mail = (useconds_t)atoi(optarg) * 1000; break;
        case 'n': no_replies = 1; break;
        case 'a': header_name = optarg; break;
        default: return 64;
        }
    }
    memset(&filter, 0, sizeof filter);
    filter.xxfi_name = "noop";
    filter.xxfi_version = SMFI_VERSION;
    filter.xxfi_flags = SMFIF_ADDHDRS;
    filter.xxfi_connect = on_connect;
    filter.xxfi_helo = on_helo;
    filter.xxfi_envfrom = on_mail;
    filter.xxfi_envrcpt = on_rcpt;
    filter.xxfi_header = on_header;
    filter.xxfi_eoh = on_event;
    filter.xxfi_body = on_body;
    filter.xxfi_eom = on_end;
    filter.xxfi_data = on_event;
    filter.xxfi_negotiate = on_negotiate;
    if (!socket_name || smfi_setconn(socket_name) != MI_SUCCESS || smfi_register(filter) != MI_SUCCESS) {
        fprintf(stderr, "noop_milter: cannot set up (is -p given?)\n");
        return 64;
    }
    smfi_setbacklog(512);
    return smfi_main() == MI_SUCCESS ? 0 : 1;
}
