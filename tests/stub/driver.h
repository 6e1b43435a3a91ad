// What the stub driver offers to libraries on top of it.
#ifndef STUB_DRIVER_H
#define STUB_DRIVER_H

// Whether a context is current.
int stub_context(void);
// Puts `work` off as the driver's own work.
void stub_call(void* stream, void (*work)(void*), void* argument);

#endif
