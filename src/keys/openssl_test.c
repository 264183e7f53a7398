/* openssl_test.c - the openssl command reads what we write, believes it, and asks us for
 * certificates. */
#include "keys/authority.h"
#include "keys/fixture.h"
#include "keys/key_file.h"
#include "test.h"
#include <openssl/x509.h>
#include <stdlib.h>
#include <sys/wait.h>
#include <unistd.h>

/* Runs it in `dir` and gives back its exit status and all it says. */
static int run(const char *dir, const char *command, char **ret_said)
{
    char *line cleanup(free_pointer) = mem_printf("cd '%s' && { %s; } 2>&1", dir, command);
    struct buf said cleanup(buf_done) = {0};
    FILE *pipe = popen(line, "re");
    REQUIRE(pipe != NULL);
    char chunk[4096];
    for (size_t n; (n = fread(chunk, 1, sizeof(chunk), pipe)) > 0;)
        buf_append(&said, chunk, n);
    int status = pclose(pipe);
    *ret_said = buf_take_text(&said);
    return WIFEXITED(status) ? WEXITSTATUS(status) : -1;
}

static void must_say(const char *dir, const char *command, const char *text)
{
    char *said cleanup(free_pointer) = NULL;
    int status = run(dir, command, &said);
    if (status != 0 || strstr(said, text) == NULL)
        test_fail(__FILE__, __LINE__, "%s: exit %d, no '%s' in: %s", command, status, text, said);
}

static bool is_installed(void)
{
    if (system("openssl version >/dev/null 2>&1") == 0)
        return true;
    test_skip("there is no openssl command");
    return false;
}

static void put(const char *dir, const char *name, struct str text)
{
    char *path cleanup(free_pointer) = mem_printf("%s/%s", dir, name);
    REQUIRE(key_file_write(path, 0600, text, NULL) == ERR_OK);
}

/* ca.pem, roots.pem, key.pem, req.pem, cert.pem of a control plane with hosts. */
static void put_all(const char *dir, struct authority_bundle *b)
{
    struct buf roots cleanup(buf_done) = {0}, key_text cleanup(buf_done) = {0},
                     csr cleanup(buf_done) = {0}, certificate cleanup(buf_done) = {0},
                     all cleanup(buf_done) = {0};
    EVP_PKEY *key cleanup(key_free) = key_make();
    struct str hosts[] = {STR("10.0.0.1"), STR("cp-1.example")};
    struct issue_order order = order_of("prod", NODE_CONTROL_PLANE, "cp-1");
    order.hosts = hosts, order.host_count = 2;
    authority_bundle_roots(b, &roots);
    key_append_pem(key, &key_text);
    csr_append_pem(key, &csr);
    REQUIRE(authority_issue(authority_bundle_signer(b), buf_str(&csr), &order, NOW_S, &certificate,
                            NULL) == ERR_OK);
    authority_bundle_write(b, &all);
    put(dir, "ca.pem", buf_str(&all));
    put(dir, "roots.pem", buf_str(&roots));
    put(dir, "key.pem", buf_str(&key_text));
    put(dir, "req.pem", buf_str(&csr));
    put(dir, "cert.pem", buf_str(&certificate));
}

TEST(openssl_verifies_our_chain_and_shows_the_names)
{
    if (!is_installed())
        return;
    char *dir cleanup(scratch_done) = scratch_make();
    struct authority_bundle b cleanup(authority_bundle_done) = make_bundle("prod");
    put_all(dir, &b);
    must_say(dir,
             "openssl verify -x509_strict -attime 1700000000 -CAfile roots.pem -purpose sslserver "
             "cert.pem",
             "cert.pem: OK");
    must_say(dir,
             "openssl verify -x509_strict -attime 1700000000 -CAfile roots.pem -purpose sslclient "
             "cert.pem",
             "cert.pem: OK");
    must_say(dir, "! openssl verify -attime 1700090000 -CAfile roots.pem cert.pem",
             "certificate has expired");
    static const char *const lines[] = {
        "URI:dirigent://prod/control-plane/cp-1",
        "IP Address:10.0.0.1",
        "DNS:cp-1.example",
        "TLS Web Server Authentication, TLS Web Client Authentication",
        "Digital Signature",
        "CA:FALSE",
        "Subject: O = prod, OU = control-plane, CN = cp-1",
        "Not Before: Nov 14 22:08:20 2023 GMT",
        "Not After : Nov 15 22:13:20 2023 GMT"};
    for (size_t i = 0; i < ARRAY_COUNT(lines); i++)
        must_say(dir, "openssl x509 -in cert.pem -noout -text", lines[i]);
    must_say(dir, "openssl x509 -in ca.pem -noout -text", "CA:TRUE, pathlen:0");
    must_say(dir, "openssl pkey -in key.pem -noout -text", "prime256v1");
    must_say(dir, "openssl req -in req.pem -noout -verify", "verify OK");
    must_say(dir, "openssl ec -in ca.pem -noout -check",
             "EC Key valid"); /* the key of the authority's file too */
}

TEST(openssl_computes_our_pin)
{
    if (!is_installed())
        return;
    char *dir cleanup(scratch_done) = scratch_make();
    struct authority_bundle b cleanup(authority_bundle_done) = make_bundle("prod");
    put_all(dir, &b);
    /* what kubeadm's manual says for --discovery-token-ca-cert-hash */
    must_say(dir,
             "openssl x509 -pubkey -noout -in roots.pem | openssl pkey -pubin -outform der | "
             "openssl dgst -sha256 -hex",
             authority_pin(b.items[0]).text + 7);
}

TEST(openssl_verifies_both_sides_of_a_rotation)
{
    if (!is_installed())
        return;
    char *dir cleanup(scratch_done) = scratch_make();
    struct authority_bundle b cleanup(authority_bundle_done) = make_bundle("prod");
    REQUIRE(authority_bundle_begin(&b, NOW_S, NULL) == ERR_OK);
    put_all(dir, &b);
    must_say(dir,
             "openssl verify -x509_strict -attime 1700000000 -CAfile roots.pem cert.pem && cp "
             "cert.pem old.pem",
             "cert.pem: OK");
    REQUIRE(authority_bundle_switch(&b, NOW_S, 0, true, NULL) == ERR_OK);
    put_all(dir, &b);
    must_say(dir,
             "openssl verify -x509_strict -attime 1700000000 -CAfile roots.pem old.pem cert.pem",
             "cert.pem: OK");
    REQUIRE(authority_bundle_finish(&b, NOW_S, 0, true, NULL) == ERR_OK);
    put_all(dir, &b);
    must_say(dir, "! openssl verify -attime 1700000000 -CAfile roots.pem old.pem",
             "error old.pem: verification failed");
}

TEST(requests_made_by_openssl_are_taken)
{
    if (!is_installed())
        return;
    char *dir cleanup(scratch_done) = scratch_make();
    struct authority_bundle b cleanup(authority_bundle_done) = make_bundle("prod");
    static const struct {
        const char *key;
        enum err err;
    } kinds[] = {{"-newkey ec -pkeyopt ec_paramgen_curve:P-256", ERR_OK},
                 {"-newkey ed25519", ERR_OK},
                 {"-newkey ec -pkeyopt ec_paramgen_curve:P-384", ERR_UNSUPPORTED},
                 {"-newkey rsa:2048", ERR_UNSUPPORTED}};
    for (size_t i = 0; i < ARRAY_COUNT(kinds); i++) {
        char *command cleanup(free_pointer) =
            mem_printf("openssl req -new %s -nodes -keyout k.pem -subj /CN=boss -out r.pem && "
                       "openssl req -in r.pem -outform der -out r.der && echo made",
                       kinds[i].key);
        must_say(dir, command, "made");
        static const char *const files[] = {"r.pem", "r.der"};
        for (size_t k = 0; k < ARRAY_COUNT(files); k++) {
            char *path cleanup(free_pointer) = mem_printf("%s/%s", dir, files[k]);
            struct buf csr cleanup(key_buf_done) = {0}, out cleanup(buf_done) = {0};
            REQUIRE(public_file_read(path, &csr, NULL) == ERR_OK);
            struct issue_order order = order_of("prod", NODE_WORKER, "w");
            CHECK_EQ(authority_issue(b.items[0], buf_str(&csr), &order, NOW_S, &out, NULL),
                     kinds[i].err);
        }
    }
}
