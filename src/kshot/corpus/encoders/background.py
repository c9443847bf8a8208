"""Texts of all kinds, which stand for text as such: questions, answers, code, numbers, talk, other tongues.

What a model's hidden states of these have in common, they have in common for any text.
"""

BACKGROUND = (
    "What is the capital of France?\nParis.",
    "Solve for x: 3x + 7 = 22.\nSubtract 7 from both sides: 3x = 15. Divide by 3: x = 5.",
    "def add(a, b):\n    return a + b",
    "Write a short poem about the sea.\nWaves roll in, the gulls reply, salt and silver, sea and sky.",
    "Translate to Spanish: The book is on the table.\nEl libro está sobre la mesa.",
    "Is this review positive or negative? The food was cold and the waiter rude.\nnegative",
    "List three causes of the First World War.\n1. Alliances\n2. Militarism\n3. Nationalism",
    "A patient has a fever and a stiff neck. Which test is done first?\n(A) X-ray (B) lumbar "
    "puncture (C) ECG (D) MRI\nB",
    "SELECT name FROM users WHERE age > 30;",
    "Tom has 4 apples and buys 9 more. How many has he?\n13",
    "Premise: A man plays a guitar. Hypothesis: A person makes music.\nentailment",
    "How do I reset my password?\nOpen the settings, choose security and press reset.",
    "The contract shall be governed by the law of the state of New York.",
    "once upon a time there was a fox who could not sleep",
    "ls -la | grep txt\nlists files and keeps the lines with txt",
    "Who wrote Hamlet? William Shakespeare",
    "Summarise: Plants turn light into sugar and give off oxygen.\nPhotosynthesis feeds plants.",
    "42",
    "Bonjour, comment allez-vous ? Très bien, merci.",
    "The stock fell by 3.2% on Monday after weak earnings.",
    "Name the antonym of hot.\ncold",
    "Paraphrase: He was very tired.\nHe felt exhausted.",
    "Water boils at 100 degrees Celsius at sea level. True or false?\ntrue",
    "You are a pirate. Greet me.\nAhoy, matey! What brings ye aboard?",
    "Convert 5 kilometres to miles.\nabout 3.1 miles",
    '{"name": "Ada", "age": 36, "city": "London"}',
    "Which of these is a mammal?\nA. trout\nB. whale\nC. eagle\nD. frog\nAnswer: B",
    "Let G be a finite group and H a subgroup. Then the order of H divides the order of G.",
    "Please book a table for two at seven.\nDone: a table for two at 7 pm.",
    "I think the reason is simple: people do not read the manual.",
    "import numpy as np\nprint(np.arange(3))",
    "Correct the grammar: She go to school.\nShe goes to school.",
)
