// Package xrpc has the pieces of an XRPC server: the error envelope, JSON answers, query parameters, and
// the verification of service tokens.
//
// It owns the form of calls and answers, and refuses to own any method: those belong to the packages that
// register them.
//
// Source: https://atproto.com/specs/xrpc
package xrpc

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strconv"
	"time"
)

// Error is an error with its place in the protocol: what a caller may see, and nothing else. Wrapped
// causes are logged, never sent.
type Error struct {
	Status     int    // HTTP status
	Name       string // from the method's Lexicon, or a general one
	Message    string // a sentence for people, saying what to do
	RetryAfter time.Duration
	Err        error // the cause, for the log; may be nil
}

func (e *Error) Error() string {
	if e.Err != nil {
		return fmt.Sprintf("%s: %s: %v", e.Name, e.Message, e.Err)
	}
	return e.Name + ": " + e.Message
}

func (e *Error) Unwrap() error { return e.Err }

// Errorf makes an Error; a %w in format is kept as its cause and stands in the message as well, so wrap
// only what callers may read.
func Errorf(status int, name, format string, args ...any) *Error {
	err := fmt.Errorf(format, args...)
	return &Error{Status: status, Name: name, Message: err.Error(), Err: errors.Unwrap(err)}
}

// InvalidRequest is the general error for calls that are not well formed.
func InvalidRequest(format string, args ...any) *Error {
	return Errorf(http.StatusBadRequest, "InvalidRequest", format, args...)
}

// WriteError translates err into the envelope {"error": Name, "message": text}. What is no *Error becomes
// a generic 500 (or 503 where the caller's context ended) without its text.
func WriteError(w http.ResponseWriter, err error) (status int, name string) {
	e := AsError(err)
	if e.RetryAfter > 0 {
		w.Header().Set("Retry-After", strconv.Itoa(int((e.RetryAfter+time.Second-1)/time.Second)))
	}
	if e.Status == http.StatusUnauthorized && w.Header().Get("WWW-Authenticate") == "" {
		w.Header().Set("WWW-Authenticate", "Bearer")
	}
	WriteJSON(w, e.Status, map[string]string{"error": e.Name, "message": e.Message})
	return e.Status, e.Name
}

// AsError is the Error inside err, or the generic one.
func AsError(err error) *Error {
	if e, ok := errors.AsType[*Error](err); ok {
		return e
	}
	if _, ok := errors.AsType[*http.MaxBytesError](err); ok {
		return &Error{Status: http.StatusRequestEntityTooLarge, Name: "PayloadTooLarge", Message: "the request body is too large", Err: err}
	}
	if errors.Is(err, context.Canceled) || errors.Is(err, context.DeadlineExceeded) {
		return &Error{Status: http.StatusServiceUnavailable, Name: "Timeout", Message: "the call was not finished in time", RetryAfter: time.Second, Err: err}
	}
	return &Error{Status: http.StatusInternalServerError, Name: "InternalServerError", Message: "internal server error", Err: err}
}

// WriteJSON sends v. A value that cannot be encoded is a bug and panics before the first byte.
func WriteJSON(w http.ResponseWriter, status int, v any) {
	body, err := json.Marshal(v)
	if err != nil {
		panic(fmt.Sprintf("xrpc: encode answer: %v", err))
	}
	h := w.Header()
	h.Set("Content-Type", "application/json; charset=utf-8")
	h.Set("Content-Length", strconv.Itoa(len(body)))
	h.Set("X-Content-Type-Options", "nosniff")
	w.WriteHeader(status)
	_, _ = w.Write(body) // the client is gone: nobody to tell
}

// MaxJSONBytes bounds JSON request bodies; a record may have 1,000,000 bytes, a batch 200 writes.
const MaxJSONBytes = 4 << 20

// jsonTime bounds how long a JSON body may take to arrive: what came is kept in memory meanwhile.
const jsonTime = 30 * time.Second

// ReadJSON decodes a request's JSON body of at most MaxJSONBytes into v. It waits half a minute for all of it.
func ReadJSON(w http.ResponseWriter, r *http.Request, v any) error {
	return readJSON(w, r, v, jsonTime)
}

func readJSON(w http.ResponseWriter, r *http.Request, v any, within time.Duration) error {
	rc := http.NewResponseController(w)
	_ = rc.SetReadDeadline(time.Now().Add(within)) // recorders in tests have no deadlines
	body, err := io.ReadAll(http.MaxBytesReader(w, r.Body, MaxJSONBytes))
	if err == nil {
		_ = rc.SetReadDeadline(time.Time{})
	}
	if ne, ok := errors.AsType[net.Error](err); ok && ne.Timeout() {
		return Errorf(http.StatusRequestTimeout, "InvalidRequest", "the request body came too slowly")
	}
	if err != nil {
		if _, ok := errors.AsType[*http.MaxBytesError](err); ok {
			return AsError(err)
		}
		return InvalidRequest("the request body could not be read")
	}
	if err := decodeJSON(body, v); err != nil {
		return InvalidRequest("the request body is not the JSON that this method takes: %v", err)
	}
	return nil
}

// maxJSONValues bounds what decoding costs: 4 MiB of `{},` may become 100 times as much. A batch of 200
// writes has some thousands.
const maxJSONValues = 250_000

var errManyValues = fmt.Errorf("more than %d values", maxJSONValues)

// decodeJSON is json.Unmarshal of what others sent.
func decodeJSON(body []byte, v any) error {
	values, inString, escaped := 0, false, false
	for _, c := range body {
		switch {
		case escaped:
			escaped = false
		case inString:
			escaped = c == '\\'
			inString = c != '"'
		case c == '"':
			inString = true
		case c == '{' || c == '[' || c == ',':
			values++
		}
	}
	if values > maxJSONValues {
		return errManyValues
	}
	return json.Unmarshal(body, v)
}

// Param is the one value of a query parameter, "" where it is absent.
func Param(r *http.Request, name string) (string, error) {
	v := r.URL.Query()[name]
	if len(v) > 1 {
		return "", InvalidRequest("parameter %q is given %d times", name, len(v))
	}
	if len(v) == 0 {
		return "", nil
	}
	return v[0], nil
}

// RequiredParam is Param for a parameter that must be there.
func RequiredParam(r *http.Request, name string) (string, error) {
	v, err := Param(r, name)
	if err == nil && v == "" {
		return "", InvalidRequest("parameter %q is required", name)
	}
	return v, err
}

// IntParam is an integer parameter between low and high, def where it is absent.
func IntParam(r *http.Request, name string, def, low, high int) (int, error) {
	v, err := Param(r, name)
	if err != nil || v == "" {
		return def, err
	}
	n, err := strconv.Atoi(v)
	if err != nil || n < low || n > high {
		return 0, InvalidRequest("parameter %q must be a whole number from %d to %d", name, low, high)
	}
	return n, nil
}

// BoolParam is a boolean parameter, false where it is absent.
func BoolParam(r *http.Request, name string) (bool, error) {
	v, err := Param(r, name)
	if err != nil {
		return false, err
	}
	switch v {
	case "", "false":
		return false, nil
	case "true":
		return true, nil
	}
	return false, InvalidRequest("parameter %q must be true or false", name)
}
