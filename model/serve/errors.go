package serve

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
)

// Why a request that its client still waits for was given up.
var (
	errDeadline = errors.New("the request took longer than this server allows; ask for fewer tokens or choices")
	errShutdown = errors.New("the server is shutting down")
)

const (
	invalidRequest = "invalid_request_error"
	serverError    = "server_error"
)

// apiError is an error in OpenAI's shape.
type apiError struct {
	status  int
	Message string `json:"message"`
	Type    string `json:"type"`
	// Param is the field that is wrong.
	Param nullable `json:"param"`
	Code  nullable `json:"code"`
}

func (e *apiError) Error() string { return e.Message }

// nullable is a string that is null where it is empty.
type nullable string

func (s nullable) MarshalJSON() ([]byte, error) {
	if s == "" {
		return []byte("null"), nil
	}
	return json.Marshal(string(s))
}

// invalid is the error for a field that a client has to change.
func invalid(param, format string, args ...any) error {
	message := fmt.Sprintf(format, args...)
	if param != "" {
		message = param + ": " + message
	}
	return &apiError{status: http.StatusBadRequest, Type: invalidRequest, Param: nullable(param), Message: message}
}

// asAPIError is err as it is told to the client.
func asAPIError(err error) *apiError {
	var e *apiError
	var size *http.MaxBytesError
	switch {
	case errors.As(err, &e):
		return e
	case errors.As(err, &size):
		return &apiError{
			status: http.StatusRequestEntityTooLarge, Type: invalidRequest, Code: "request_too_large",
			Message: fmt.Sprintf("the request's body is larger than %d bytes", size.Limit),
		}
	case errors.Is(err, errDeadline):
		return &apiError{status: http.StatusGatewayTimeout, Type: serverError, Code: "timeout", Message: err.Error()}
	case errors.Is(err, errShutdown):
		return &apiError{status: http.StatusServiceUnavailable, Type: serverError, Code: "shutting_down", Message: err.Error()}
	}
	return &apiError{status: http.StatusInternalServerError, Type: serverError, Message: err.Error()}
}

// errorBody is the JSON of an error.
type errorBody struct {
	Error *apiError `json:"error"`
}

// writeError answers with err, unless it says that the client has gone.
func writeError(w http.ResponseWriter, err error) {
	if errors.Is(err, context.Canceled) {
		return
	}
	e := asAPIError(err)
	writeJSON(w, e.status, errorBody{e})
}

func writeJSON(w http.ResponseWriter, status int, v any) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	_, _ = w.Write(encode(v)) // fails when the client has gone
}

// encode is a record's JSON and a line end. HTML's characters stay as they are.
func encode(v any) []byte {
	var b bytes.Buffer
	e := json.NewEncoder(&b)
	e.SetEscapeHTML(false)
	if err := e.Encode(v); err != nil {
		panic(err) // records hold what has a JSON form
	}
	return b.Bytes()
}
