// Wakes the page after so many milliseconds: browsers hold the timers of a hidden page back.
onmessage = ({ data: [number, ms] }) => setTimeout(() => postMessage(number), ms);
