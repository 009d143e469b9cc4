/* The boundary of dynalora's plugins, for a plugin in C (or anything that can export C's functions).

   Made of the types in plugin-api/src/abi/mod.rs: UPDATE_HEADER=1 cargo test -p dynalora-plugin-api --test header.
   docs/plugins.md has the calls, their fields, and an allocator in C. */

#ifndef DYNALORA_PLUGIN_H
#define DYNALORA_PLUGIN_H

#include <stddef.h>
#include <stdint.h>

// The version of the boundary, of which the first number counts.
#define DYNALORA_API_VERSION "1.0.0"

// The call was answered; the answer's fields are in the sink.
#define DYNALORA_ANSWERED 0

// The call failed; the sentence is in the sink's field `error`.
#define DYNALORA_FAILED 1

// There is no such call, which is as if it gave its default.
#define DYNALORA_UNKNOWN 2

// UTF-8.
#define DYNALORA_TEXT 1

// UTF-8 that is JSON.
#define DYNALORA_JSON 2

// Bytes.
#define DYNALORA_BYTES 3

// `float`s, NaN where one is missing.
#define DYNALORA_F32S 4

// `double`s, NaN where one is missing.
#define DYNALORA_F64S 5

// `uint64_t`s.
#define DYNALORA_U64S 6

// `uint8_t`s, 0 or 1.
#define DYNALORA_BOOLS 7

// One `double`.
#define DYNALORA_REAL 8

// One `uint64_t`.
#define DYNALORA_INT 9

// One `uint8_t`, 0 or 1.
#define DYNALORA_FLAG 10

// A value under a name.
typedef struct DynaloraField {
  // The name in UTF-8.
  const uint8_t *name;
  // Its bytes.
  size_t name_len;
  // What lies at `data`: one of the constants in `kind`.
  uint32_t kind;
  // The values, aligned as their type wants it.
  const void *data;
  // How many they are; 1 for a single value.
  size_t len;
} DynaloraField;

// The fields of a message, for as long as a call lasts.
typedef struct DynaloraMessage {
  // The first field.
  const struct DynaloraField *fields;
  // How many there are.
  size_t len;
} DynaloraMessage;

// Where an answer's fields go, one call of `put` each; it copies what it is given.
typedef struct DynaloraSink {
  // Handed back to `put`.
  void *context;
  // Takes one field.
  void (*put)(void *context, const struct DynaloraField *field);
} DynaloraSink;

// The functions of a plugin's library.
typedef struct DynaloraTable {
  // Makes an instance from the fields `kind` (`scorer` or `allocator`), `parameters`, `modules` and
  // `count`, how many modules they are; null where
  // that fails, with the sentence in the field `error`.
  void *(*make)(struct DynaloraMessage input, struct DynaloraSink out);
  // Calls an instance, or the library itself where `instance` is null (`describe`, with the field `kind`).
  // The answer is one of `ANSWERED`, `FAILED`, `UNKNOWN`.
  uint32_t (*call)(void *instance,
                   const uint8_t *name,
                   size_t name_len,
                   struct DynaloraMessage input,
                   struct DynaloraSink out);
  // Ends an instance.
  void (*drop)(void *instance);
} DynaloraTable;

#endif  /* DYNALORA_PLUGIN_H */

/* Below: what is the same in every plugin in C. Nothing else has to be known of it. */

#include <string.h>

/* Lays the static manifest into the library, which is read from its file when a plugin is looked up (nothing of the
   library runs for that), and exports its three functions. Once, at the end of one source file:

       DYNALORA_PLUGIN("lowest", "allocator", "1.0.0", make, call, drop)

   The name is in kebab case; the kind is "scorer", "allocator" or "scorer allocator". */
#define DYNALORA_PLUGIN(name, kind, version, make, call, drop)                                                        \
    DYNALORA_LABEL("format=1\nname=" name "\nkind=" kind "\nversion=" version "\napi=" DYNALORA_API_VERSION             \
                   "\npanic=none\n")                                                                                  \
    DYNALORA_EXPORT const DynaloraTable dynalora_plugin_table = {make, call, drop};

/* A magic number, the length in 4 bytes, 8 bytes of a checksum (0: none, for a preprocessor cannot compute one), the
   text. All are bytes, so that nothing lies between them. */
#define DYNALORA_LABEL(text)                                                                                          \
    DYNALORA_EXPORT const struct {                                                                                    \
        unsigned char magic[16], length[4], checksum[8];                                                              \
        char said[sizeof(text)];                                                                                      \
    } dynalora_plugin_manifest = {                                                                                    \
        {0xd7, 'D', 'Y', 'N', 'A', 'L', 'O', 'R', 'A', 0, 'P', 'L', 'U', 'G', 'I', 'N'},                              \
        {(sizeof(text) - 1) & 255, (sizeof(text) - 1) >> 8 & 255, (sizeof(text) - 1) >> 16 & 255, 0},                 \
        {0, 0, 0, 0, 0, 0, 0, 0},                                                                                     \
        text};

#ifdef __cplusplus
#define DYNALORA_C extern "C"
#else
#define DYNALORA_C
#endif
#if defined(_WIN32)
#define DYNALORA_EXPORT DYNALORA_C __declspec(dllexport)
#elif defined(__GNUC__)
#define DYNALORA_EXPORT DYNALORA_C __attribute__((used, visibility("default")))
#else
#define DYNALORA_EXPORT DYNALORA_C
#endif

/* Whether a name, which has no 0 at its end, is this one. */
static inline int dynalora_is(const uint8_t *name, size_t name_len, const char *other) {
    return name_len == strlen(other) && memcmp(name, other, name_len) == 0;
}

/* The field of this name and kind, or NULL: fields that a plugin does not know are passed over. */
static inline const DynaloraField *dynalora_field(DynaloraMessage message, const char *name, uint32_t kind) {
    for (size_t at = 0; at < message.len; at++) {
        const DynaloraField *field = &message.fields[at];
        if (field->kind == kind && dynalora_is(field->name, field->name_len, name)) return field;
    }
    return NULL;
}

/* Answers with one field; it is copied. */
static inline void dynalora_answer(DynaloraSink out, const char *name, uint32_t kind, const void *data, size_t len) {
    DynaloraField field = {(const uint8_t *)name, strlen(name), kind, data, len};
    out.put(out.context, &field);
}

/* Answers with a text, of the kind DYNALORA_TEXT or DYNALORA_JSON. */
static inline void dynalora_say(DynaloraSink out, const char *name, uint32_t kind, const char *text) {
    dynalora_answer(out, name, kind, text, strlen(text));
}

/* Says why a call fails; `call` then returns what this returns. */
static inline uint32_t dynalora_refuse(DynaloraSink out, const char *why) {
    dynalora_say(out, "error", DYNALORA_TEXT, why);
    return DYNALORA_FAILED;
}
